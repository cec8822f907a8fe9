"""`sa2depth predict`: images in, depth files out."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.friendly import complain
from sa2depth.cli.inputs import find_images, parse_size
from sa2depth.cli.options import Checkpoint, Device, LegacyDepth, Precision, Trusted
from sa2depth.errors import DataError, ShapeError

if TYPE_CHECKING:
    from rich.console import Console

    from sa2depth.infer import Predictor


def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders or patterns.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")],
    checkpoint: Checkpoint,
    min_depth: LegacyDepth = None,
    max_depth: LegacyDepth = None,
    trusted: Trusted = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the mirrored image: slower, better.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Run the network at this size; results keep the input's."),
    ] = None,
    max_side: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", min=1, help="Shrink larger images to this for the network."),
    ] = None,
    formats: Annotated[str, typer.Option(help="Any of color, mm, npy.")] = "color,mm,npy",
    colormap: Annotated[str, typer.Option(metavar="NAME", help="turbo, magma, viridis ...")] = "turbo",
    depth_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range",
            metavar="NEAR FAR",
            help="Metres at the ends of the colours; the model's own otherwise.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that fails.")] = False,
) -> None:
    """Predict metric depth: colour PNG, 16-bit millimetre PNG and .npy, each at the image's own size."""
    from rich.console import Console

    console = Console(stderr=True)
    _show_warnings(console)
    files = find_images(images)
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    working_size = parse_size(size)

    from sa2depth.infer import Predictor
    from sa2depth.infer.writers import check_formats
    from sa2depth.targets import parse_trusted
    from sa2depth.weights import load_model

    check_formats(wanted)
    known = parse_trusted(trusted, "--trusted")
    model = load_model(checkpoint, min_depth=min_depth, max_depth=max_depth, trusted=known)
    predictor = Predictor(
        model,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # the Predictor refuses others by name
        flip=flip,
        max_side=max_side,
        size=working_size,
    )
    written, failed = _run(predictor, files, output, wanted, depth_range, colormap, strict, console)
    print(f"{written} files of {len(files) - failed} images in {output}")
    if failed:
        complain(f"{failed} of {len(files)} images failed; they are named above")
        raise typer.Exit(1)


def _run(
    predictor: "Predictor",
    files: list[Path],
    output: Path,
    formats: list[str],
    depth_range: tuple[float, float] | None,
    colormap: str,
    strict: bool,
    console: "Console",
) -> tuple[int, int]:
    """Predict and write all images; returns the counts of files written and of images that failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sa2depth.infer import unique_names, write

    written = failed = 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=len(files))
        for file, name in zip(files, unique_names(files), strict=True):
            progress.update(task, description=name)
            try:
                written += len(write(predictor(file, id=name), output, name, formats, depth_range, colormap))
            except OSError as error:
                raise DataError(f"{output}: cannot be written ({error.strerror or error})") from error
            except (DataError, ShapeError) as error:  # the image's fault; other mistakes end the run
                if strict:
                    raise
                failed += 1
                complain(str(error))
            progress.advance(task)
    return written, failed


def _show_warnings(console: "Console") -> None:
    """Send the package's warnings to stderr, one line each."""
    from rich.logging import RichHandler

    log = logging.getLogger("sa2depth")
    if not any(isinstance(handler, RichHandler) for handler in log.handlers):
        log.addHandler(RichHandler(console=console, show_time=False, show_path=False, level=logging.WARNING))
