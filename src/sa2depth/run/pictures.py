"""The pictures of an evaluation: strips of the worst, best and some spread images, and a grid of the spread ones."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import all_gather_object, get_world_size, is_available, is_initialized

from sa2depth.metrics import Evaluation, Examples
from sa2depth.metrics.examples import Example, Kind, choose
from sa2depth.report import DepthGrids, depth_grid
from sa2depth.stages import Progress

FOLDER = "pictures"


def write_pictures(
    folder: Path, evaluation: Evaluation, examples: Examples, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Draw the chosen images into ``folder/pictures``.

    It must be called on every process; each draws the images that it scored.

    Args:
        folder: the run's folder, on a disk that the processes share.
        evaluation: the table of the whole split, the same on every process.
        examples: candidates of this process.
        progress: progress of the stage, one step per picture.

    Returns:
        ``kind``, ``id``, ``file`` relative to the folder and ``abs_rel`` of every picture, the same on every process.
    """
    grids = DepthGrids(evaluation.protocol.max_depth)
    drawn: dict[int, Path] = {}
    listed: list[dict[str, Any]] = []
    for kind, rows in _chosen(evaluation, examples).items():
        for place, row in enumerate(rows, start=1):
            path = folder / FOLDER / f"{kind}_{place}.png"
            example = examples.get(row["index"])
            if example is not None and row["index"] in drawn:
                shutil.copyfile(
                    drawn[row["index"]], path
                )  # in a small split an image may be of several kinds
            elif example is not None:
                drawn[row["index"]] = _strip(grids, path, example, row)
            listed.append(
                {
                    "kind": kind,
                    "id": row["id"],
                    "file": path.relative_to(folder).as_posix(),
                    "abs_rel": row["abs_rel"],
                }
            )
            if progress is not None:
                progress.advance()
    return listed


def write_grid(path: Path, evaluation: Evaluation, examples: Examples, is_writer: bool) -> Path | None:
    """Draw the spread images below one another.

    It must be called on every process; the writer gets the images from all.

    Returns:
        The path; None if there is nothing to draw or another process draws it.
    """
    rows = _chosen(evaluation, examples)["spread"]
    mine = {row["index"]: example for row in rows if (example := examples.get(row["index"])) is not None}
    held: dict[int, Example] = {}
    for part in _gather(mine):
        held |= part
    shown = [held[row["index"]] for row in rows if row["index"] in held]
    if not is_writer or not shown:
        return None
    images, truths, predictions, ids = zip(*shown, strict=True)
    return depth_grid(images, truths, predictions, evaluation.protocol.max_depth, path, titles=ids)


def _chosen(evaluation: Evaluation, examples: Examples) -> dict[Kind, list[Mapping[str, Any]]]:
    return choose(evaluation.table, examples.count, examples.total)


def _strip(grids: DepthGrids, path: Path, example: Example, row: Mapping[str, Any]) -> Path:
    title = f"abs_rel {row['abs_rel']:.3f}\n{example.id}"
    image, truth, prediction, _ = example
    return grids.draw([image], [truth], [prediction], path, titles=[title])


def _gather(value: dict[int, Example]) -> Sequence[dict[int, Example]]:
    if not (is_available() and is_initialized()):
        return [value]
    parts: list[Any] = [None] * get_world_size()
    all_gather_object(parts, value)
    return parts
