"""`sa2depth data show`: draws a contact sheet of a data set, before and after augmentation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.data.choose import build_module, compose_data, require_source
from sa2depth.cli.friendly import complain
from sa2depth.errors import ConfigError, DataError
from sa2depth.stages import stage

if TYPE_CHECKING:
    from sa2depth.data.loading.dataset import DepthDataset
    from sa2depth.data.sample import Source
    from sa2depth.report.contact_sheet import SheetRow


def show(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A file in conf/data, e.g. nyu_sync.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE...]", help="Options of training, e.g. data.train.ids=[...]."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set; by default as configured.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 6,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; by default the first that the data set has.")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also show this augmentation of conf/augment.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing and augmenting images.")] = 0,
    max_depth: Annotated[
        float | None,
        typer.Option(min=0.001, help="Metres at the end of the colours; default: from the images."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG file to write.")] = Path(
        "sheet.png"
    ),
) -> None:
    """Draw photographs, depth and depth histograms, before and after augmentation, in one PNG."""
    from sa2depth.cli.data.choose import SPLITS

    if split is not None and split not in SPLITS:
        raise ConfigError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    if output.suffix.lower() != ".png":
        raise ConfigError(f"{output}: the sheet is a PNG file, so name it {output.with_suffix('.png')}")
    cfg = compose_data(dataset, root, overrides or (), augment)
    chosen_split, source = require_source(cfg, SPLITS if split is None else (split,))
    with stage("loading PyTorch"):
        from sa2depth.data.loading.dataset import DepthDataset
        from sa2depth.report.contact_sheet import contact_sheet

    indices, missing = _choose(source, count, seed)
    change = None if augment is None else build_module(cfg).augment
    augmented = DepthDataset(source, change, seed)
    rows, failed = _rows(augmented, indices)
    heading = f"{dataset}, {chosen_split}: {len(rows)} of {len(source):,} images"
    heading += "" if augment is None else f"; augmentation {augment}, seed {seed}"
    contact_sheet(rows, output, heading, max_depth)
    if missing:
        typer.echo(
            f"{missing:,} of {len(source):,} images lack files: 'sa2depth data check' names them", err=True
        )
    print(f"wrote {len(rows)} of {len(source):,} images of {chosen_split} to {output}")
    if failed:
        complain(f"{failed} of {len(indices)} images cannot be shown; they are named above")
        raise typer.Exit(1)


def _choose(source: "Source", count: int, seed: int) -> tuple[list[int], int]:
    """Sorted indices of images drawn at random among those with all files, and the number that lack files."""
    from sa2depth.data.listing import files_of, missing_files
    from sa2depth.data.loading.samplers import stream
    from sa2depth.data.source import FileSource

    usable = list(range(len(source)))
    if isinstance(source, FileSource):
        missing = set(missing_files(files_of(source.frames)))
        if missing:
            usable = [number for number in usable if missing.isdisjoint(source.frames[number].files)]
        if not usable and source.listing is not None:
            source.listing.require()
    drawn = stream(seed, 2).permutation(len(usable))[:count]
    return sorted(usable[number] for number in drawn), len(source) - len(usable)


def _rows(dataset: "DepthDataset", indices: list[int]) -> tuple[list["SheetRow"], int]:
    """The images that can be read, and the number of the others, which are named on stderr.

    Raises:
        DataError: none can be read; this is the error of the last one.
    """
    rows, failed = [], 0
    for index in indices:
        try:
            rows.append(_row(dataset, index))
        except DataError as error:
            failed += 1
            if failed == len(indices):
                raise
            complain(str(error))
    return rows, failed


def _row(dataset: "DepthDataset", index: int) -> "SheetRow":
    """One image as read, and as training gets it in its first epoch."""
    from sa2depth.report.contact_sheet import SheetRow

    sample = dataset.source[index]
    if dataset.augment is None:
        return SheetRow(sample.id, sample.image, sample.depth)
    item = dataset[index]
    depth = item["depth"][0].numpy() if "depth" in item else None
    return SheetRow(sample.id, sample.image, sample.depth, item["image"].permute(1, 2, 0).numpy(), depth)
