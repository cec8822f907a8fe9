"""Read the files of an evaluation: ``metrics.json`` and, if they exist, its tables and pictures.

Runs of older versions lack some of them; ``RunFiles.gaps`` names everything that is missing.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa2depth.errors import DataError
from sa2depth.report.metric_facts import as_number, metric_order, scores_of
from sa2depth.report.tables import DEPTH_COLUMNS

_NO_METRIC = ("index", "id", "pixels", "nonfinite_pixels")
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ImageScore:
    """Errors of one image.

    Attributes:
        index: Place of the image in the split.
        id: Name of the image.
        scores: Metric -> value; NaN if the image has no scored pixel.
        pixels: Number of scored pixels.
        nonfinite_pixels: Number of pixels of the prediction that are NaN or infinite.
    """

    index: int
    id: str
    scores: Mapping[str, float]
    pixels: int
    nonfinite_pixels: int


@dataclass(frozen=True)
class Picture:
    """A strip of image, truth, prediction and error.

    Attributes:
        kind: ``worst``, ``best`` or ``spread``.
        id: Name of the image.
        path: The file, which exists inside the run's folder.
    """

    kind: str
    id: str
    path: Path


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's folder.

    Attributes:
        folder: The folder, absolute.
        document: ``metrics.json``.
        names: Metrics in the order of the protocol.
        means: Metric -> mean over the images; NaN if the document has null.
        images: Rows of ``per_image.csv`` in their order; empty without the file.
        by_depth: Rows of ``by_depth.csv``; values are NaN if the interval has no pixel.
        pictures: Strips that exist.
        gaps: One sentence about each thing that is missing or contradictory.
    """

    folder: Path
    document: Mapping[str, Any]
    names: tuple[str, ...]
    means: Mapping[str, float]
    images: tuple[ImageScore, ...]
    by_depth: tuple[Mapping[str, float], ...]
    pictures: tuple[Picture, ...]
    gaps: tuple[str, ...]

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The rules of the evaluation."""
        rules: Mapping[str, Any] = self.document["protocol"]
        return rules

    @property
    def title(self) -> str:
        """The folder with its parent, because a time of day alone says little."""
        return f"{self.folder.parent.name}/{self.folder.name}".lstrip("/")

    def file(self, name: str) -> Path | None:
        """A file of the run, if it exists."""
        path = self.folder / name
        return path if path.is_file() else None


def read_run(run: Path | str) -> RunFiles:
    """Read a run's folder.

    Args:
        run: The folder, or its ``metrics.json``.

    Returns:
        Its content.

    Raises:
        DataError: There is no ``metrics.json``, or a file is damaged or wrong.
    """
    folder = Path(run).resolve()
    folder = folder.parent if folder.name == "metrics.json" else folder
    document = _read_document(folder, Path(run))
    gaps: list[str] = []
    images = _read_images(folder / "per_image.csv", gaps)
    by_depth = _read_by_depth(folder / "by_depth.csv", document, gaps)
    pictures = _find_pictures(folder, document, gaps)
    wanted = document["protocol"].get("metrics") or (list(images[0].scores) if images else ())
    names = metric_order(document["metrics"], wanted)
    means = scores_of(document["metrics"], names)
    gaps += _contradictions(document, means, images)
    return RunFiles(folder, document, names, means, images, by_depth, pictures, tuple(gaps))


def _read_document(folder: Path, named: Path) -> Mapping[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        below = sorted(p.parent for p in folder.glob("*/metrics.json")) if folder.is_dir() else []
        hint = (
            f"did you mean {' or '.join(str(p) for p in below[-3:])}?"
            if below
            else "name the folder of a finished evaluation (python -m sa2depth.eval writes the file)"
        )
        found = "holds no metrics.json" if folder.is_dir() else "is not a folder"
        raise DataError(f"{named} {found}: {hint}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): evaluate again") from error
    for key in ("metrics", "protocol"):
        if not isinstance(document, dict) or not isinstance(document.get(key), dict):
            raise DataError(
                f"{path}: expected an evaluation of sa2depth with a mapping '{key}', found none: evaluate again"
            )
    if not document["metrics"]:
        raise DataError(f"{path}: 'metrics' is empty: evaluate again")
    return document


def _read_images(path: Path, gaps: list[str]) -> tuple[ImageScore, ...]:
    if not path.is_file():
        gaps.append("There is no per_image.csv, so histograms and the table of images are missing.")
        return ()
    header, rows = _read_csv(path)
    if "id" not in header:
        raise DataError(f"{path}: expected a column 'id', found {', '.join(header) or 'no header'}")
    metrics = [name for name in header if name not in _NO_METRIC]
    return tuple(
        ImageScore(
            index=int(_cell(path, line, row, "index", float(place))),
            id=row["id"],
            scores={name: _cell(path, line, row, name) for name in metrics},
            pixels=int(_cell(path, line, row, "pixels", 1.0)),
            nonfinite_pixels=int(_cell(path, line, row, "nonfinite_pixels", 0.0)),
        )
        for place, (line, row) in enumerate(rows)
    )


def _read_by_depth(
    path: Path, document: Mapping[str, Any], gaps: list[str]
) -> tuple[Mapping[str, float], ...]:
    if path.is_file():
        _, rows = _read_csv(path)
        if not rows:
            gaps.append("by_depth.csv is empty: the protocol names no depth ranges.")
        return tuple({name: _cell(path, line, row, name) for name in DEPTH_COLUMNS} for line, row in rows)
    listed = document.get("by_depth")
    if isinstance(listed, list) and listed and all(isinstance(row, dict) for row in listed):
        return tuple(_depth_row(row) for row in listed)
    gaps.append(
        "There is no by_depth.csv (runs of older versions lack it), so the error by depth is missing."
    )
    return ()


def _depth_row(row: Mapping[str, Any]) -> Mapping[str, float]:
    values = scores_of(row, DEPTH_COLUMNS)
    # the last interval is open: its end is infinity, which JSON writes as null
    return {**values, "to": math.inf if row.get("to") is None else values["to"]}


def _find_pictures(folder: Path, document: Mapping[str, Any], gaps: list[str]) -> tuple[Picture, ...]:
    listed = document.get("pictures")
    if not isinstance(listed, list) or not listed:
        gaps.append("No pictures of the worst and best images were kept.")
        return ()
    pictures = []
    for entry in listed:
        entry = entry if isinstance(entry, dict) else {}
        file = str(entry.get("file", ""))
        path = (folder / file).resolve()
        # a metrics.json of someone else must not pull other files of this computer into the page
        if not path.is_relative_to(folder):
            gaps.append(f"The picture {file} lies outside the run's folder and is left out.")
        elif not file or not path.is_file():
            gaps.append(f"The picture {file} is named in metrics.json but does not exist.")
        else:
            pictures.append(Picture(str(entry.get("kind", "")), str(entry.get("id", "")), path))
    return tuple(pictures)


def _contradictions(
    document: Mapping[str, Any], means: Mapping[str, float], images: tuple[ImageScore, ...]
) -> list[str]:
    """Sentences about contradictions that show that the table and the means are from different evaluations."""
    if not images:
        return []
    said = as_number(document.get("evaluated_images"))
    if math.isfinite(said) and said != len(images):
        return [
            f"metrics.json counts {said:g} images, but per_image.csv has {len(images)}: they are from different "
            "evaluations."
        ]
    for name, mean in means.items():
        values = [image.scores[name] for image in images if name in image.scores and image.pixels > 0]
        table = math.fsum(values) / len(values) if values else math.nan
        if abs(table - mean) > _TOLERANCE * max(1.0, abs(mean)):
            return [
                f"The mean {name} of per_image.csv is {table:.6g}, but metrics.json says {mean:.6g}: they are from "
                "different evaluations."
            ]
    return []


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header, and line number and cells of each row."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file ({error}): evaluate again") from error
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(
                f"{path} line {line}: expected {len(header)} cells as in the header: evaluate again"
            )
    return header, rows


def _cell(path: Path, line: int, row: Mapping[str, str], name: str, missing: float = math.nan) -> float:
    """Read a number of a CSV row; an empty cell is NaN, and a column that does not exist gives ``missing``."""
    if name not in row:
        return missing
    try:
        value = float(row[name] or "nan")
    except ValueError:
        raise DataError(f"{path} line {line}: {name} must be a number, found '{row[name][:40]}'") from None
    if name in ("index", "pixels", "nonfinite_pixels") and "id" in row and not math.isfinite(value):
        raise DataError(f"{path} line {line}: {name} must be a whole number, found '{row[name][:40]}'")
    return value
