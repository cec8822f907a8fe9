"""A listing: everything one split of a data set should hold, whether or not it is on this disk.

The modules of `sa2depth.data.sets` return listings and open no image; `sa2depth.data.source` turns them into samples
and `sa2depth data check` compares them with the disk.
"""

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sa2depth.data.frame import Frame
from sa2depth.errors import DataError

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """The frames of a split and facts about them.

    Attributes:
        title: name of the split in messages, e.g. ``NYU v2 labelled, test``.
        root: folder that should hold the files.
        frames: all frames in their order, those without ground truth included.
        advice: advice about missing files: the expected layout and the origin of the archives.
        size: ``(H, W)`` of all images, or None if they differ.
        depth_range: nearest and farthest plausible depth in metres; values outside hint at a wrong scale.
        expected: number of frames that the published list has; None for sets without one.

    Raises:
        DataError: two frames share an id, or the number of frames is not the expected one.
    """

    title: str
    root: Path
    frames: tuple[Frame, ...]
    advice: str
    size: tuple[int, int] | None = None
    depth_range: tuple[float, float] = (0.0, math.inf)
    expected: int | None = None

    def __post_init__(self) -> None:
        ids = Counter(frame.id for frame in self.frames)
        if twice := [name for name, count in ids.items() if count > 1]:
            raise DataError(f"{self.title}: {len(twice)} ids occur more than once, first '{twice[0]}'")
        if self.expected is not None and len(self.frames) != self.expected:
            raise DataError(
                f"{self.title}: {len(self.frames):,} frames are listed, expected {self.expected:,}"
            )

    @property
    def without_truth(self) -> list[str]:
        """Ids of the frames for which the data set has no ground truth."""
        return [frame.id for frame in self.frames if frame.depth is None]

    def require(self, frames: Sequence[Frame] | None = None) -> None:
        """Fail unless the files of ``frames`` exist; None means all frames.

        Raises:
            DataError: files are missing; the message gives their number, first names, folder and the advice.
        """
        # OFFICIAL: the released loader skips an image whose ground truth is missing and evaluates the rest.
        wanted = files_of(self.frames if frames is None else frames)
        missing = missing_files(wanted)
        if missing:
            names = "".join(f"\n  {self._below(path)}" for path in missing[:_NAMES_SHOWN])
            more = f"\n  ... and {len(missing) - _NAMES_SHOWN:,} more" if len(missing) > _NAMES_SHOWN else ""
            state = "" if self.root.is_dir() else " (this folder does not exist)"
            raise DataError(
                f"{self.title}: {len(missing):,} of {len(wanted):,} files are missing below {self.root}{state}:"
                f"{names}{more}\n{_spelling(missing)}{self.advice}"
            )

    def _below(self, path: Path) -> Path:
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path


def files_of(frames: Iterable[Frame]) -> list[Path]:
    """All files that the frames need, each once, since many frames share a calibration file."""
    return list(dict.fromkeys(path for frame in frames for path in frame.files))


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """The ``paths`` that do not exist.

    Each folder is listed once: faster than a query for each of 72,000 files, above all on network disks.
    """
    listings: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in listings:
            listings[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in listings[folder]:
            missing.append(path)
    return missing


def _spelling(missing: Sequence[Path]) -> str:
    """A hint if missing paths exist in another spelling, one that Windows would accept; else empty."""
    if os.sep == "/" and any("\\" in str(path) for path in missing):
        return "Only Windows understands paths with backslashes: write / instead.\n"
    for path in missing[:_NAMES_SHOWN]:
        try:
            names = os.listdir(path.parent)  # noqa: PTH208  # names alone
        except OSError:
            continue
        for name in names:
            if name.casefold() == path.name.casefold():
                return f"{path.name} exists as {name}: upper and lower case matter.\n"
            if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", path.name):
                return f"{path.name} exists, but its accents are other characters: copy the name from the folder.\n"
    return ""


def named(names: Iterable[str]) -> str:
    """The first names in alphabetical order and the number of the others; ``none`` if there are no names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMES_SHOWN:,} more" if len(ordered) > _NAMES_SHOWN else ""
    return (", ".join(ordered[:_NAMES_SHOWN]) + more) or "none"
