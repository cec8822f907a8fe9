"""`sa2depth bench --what agreement`: measures how much the ways to run a trained network differ."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sa2depth.cli.inputs import find_images, parse_size
from sa2depth.errors import ConfigError

if TYPE_CHECKING:
    from sa2depth.bench.agreement import Row

GENERATED = {"generated": "streets", "streets": "streets", "rooms": "rooms", "mixed": "mixed"}
"""Kinds of generated scenes that ``--images`` may name instead of files."""


def agreement(
    checkpoint: str | None,
    images: str,
    count: int,
    size: str,
    device: str,
    only: str,
    json_file: Path | None,
    circumstances: dict[str, str],
) -> None:
    """Print a line for each way to run the network, and write them as JSON if asked to.

    Args:
        checkpoint: weights of any known format.
        images: a file, a folder, a pattern, or a key of `GENERATED`.
        count: largest number of images.
        size: ``HxW`` at which the network runs.
        device: device to run on.
        only: words in the names of the ways; empty for all.
        json_file: also write the figures to this file.
        circumstances: device, versions.

    Raises:
        ConfigError: no checkpoint was given.
    """
    if checkpoint is None:
        raise ConfigError(
            "--what agreement compares runs of a trained network: add --checkpoint MODEL.safetensors "
            "(random weights amplify rounding and say nothing about yours)"
        )
    from rich.console import Console

    from sa2depth.bench.agreement import check_size, generated, photographs, run
    from sa2depth.infer.predictor import pick_device

    shape = parse_size(size) or (480, 640)
    max_depth = check_size(checkpoint, shape)
    if images in GENERATED:
        pictures = generated(count, shape, GENERATED[images], max_depth)
    else:
        pictures = photographs(find_images([images])[:count], shape)
    console = Console(soft_wrap=True, highlight=False)
    console.print(", ".join(f"{key} {value}" for key, value in circumstances.items()), style="bold")
    console.print(
        f"{len(pictures.images)} images ({images}) at {shape[0]}x{shape[1]}, {checkpoint}; each way to run it compared "
        "with float64"
    )
    console.print(f"{'':<58} {'RMS %':>9} {'>1 %':>9} {'>5 %':>9} {'max m':>9} {'abs_rel':>18}")
    rows: list[Row] = []
    try:
        for row in run(checkpoint, pictures, pick_device(device), only):
            console.print(line(row))
            rows.append(row)
    finally:  # if it is stopped, write what has been measured
        if json_file is not None:
            _write(json_file, {**circumstances, "checkpoint": checkpoint, "images": images}, shape, rows)
            console.print(f"wrote {json_file}")
    if failed := sum(row.note.startswith("failed") for row in rows):
        console.print(f"{failed} of {len(rows)} could not be measured; each line says why")
        raise typer.Exit(1)


def line(row: "Row") -> str:
    """A row of the table: RMS in % of the depth, shares of pixels in %, metres, error against the truth."""
    if row.rms_percent is None or row.over_1_percent is None or row.over_5_percent is None:
        return f"{row.route:<58} {row.note}"
    shares = f"{100 * row.over_1_percent:>8.3f}% {100 * row.over_5_percent:>8.3f}%"
    error = "" if row.abs_rel is None else f"{row.abs_rel:>9.5f} {row.abs_rel_change:>+8.5f}"
    return f"{row.route:<58} {row.rms_percent:>9.2g} {shares} {row.largest_m:>9.2g} {error:>18}"


def _write(path: Path, document: dict[str, str], size: tuple[int, int], rows: list["Row"]) -> None:
    from sa2depth.atomic import atomic_path

    figures = {**document, "height": size[0], "width": size[1], "rows": [row.as_dict() for row in rows]}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
