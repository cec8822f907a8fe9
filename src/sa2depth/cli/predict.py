"""`sa2depth predict`: predicts depth for images and writes it to files."""

import contextlib
import errno
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.friendly import complain
from sa2depth.cli.inputs import find_images, parse_size
from sa2depth.cli.options import Checkpoint, Device, LegacyDepth, Precision, Trusted
from sa2depth.errors import DataError, ShapeError, UserError
from sa2depth.stages import stage

if TYPE_CHECKING:
    from rich.console import Console

    from sa2depth.infer import Prediction, Predictor

_NAMES_SHOWN = 5


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
        typer.Option(metavar="HxW", help="Run the network at this size; results have the size of the input."),
    ] = None,
    max_side: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=1, help="Longest side that the network sees; larger images are shrunk."
        ),
    ] = None,
    max_megapixels: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Never decode larger files at full size: read them reduced with --max-side or --size, otherwise "
            "refuse them. Default: SA2DEPTH_MAX_MEGAPIXELS, or 179.",
        ),
    ] = None,
    formats: Annotated[str, typer.Option(help="Files to write: any of color, mm, npy.")] = "color,mm,npy",
    colormap: Annotated[str, typer.Option(metavar="NAME", help="turbo, magma, viridis ...")] = "turbo",
    depth_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range",
            metavar="NEAR FAR",
            help="Metres at the ends of the colours; by default the range of the model.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that fails.")] = False,
) -> None:
    """Predict metric depth; write a colour PNG, a 16-bit PNG in mm and a .npy, each at the image's own size."""
    from rich.console import Console

    console = Console(stderr=True)
    _show_warnings()
    files = find_images(images, lambda text: typer.echo(f"note: {text}", err=True))
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    working_size = parse_size(size)

    with stage("loading PyTorch"):
        from sa2depth.infer import Predictor
        from sa2depth.infer.writers import check_formats
        from sa2depth.targets import parse_trusted
        from sa2depth.threads import settle
        from sa2depth.weights import load_model

    check_formats(wanted)
    _check_folder(output)
    known = parse_trusted(trusted, "--trusted")
    model = load_model(checkpoint, min_depth=min_depth, max_depth=max_depth, trusted=known)
    predictor = Predictor(
        model,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # the Predictor rejects other values
        flip=flip,
        max_side=max_side,
        size=working_size,
        max_megapixels=max_megapixels,
    )
    settle(predictor.device.type)
    written, failed = _run(predictor, files, output, wanted, depth_range, colormap, strict, console)
    print(f"wrote {written} files of {len(files) - failed} images to {output}")
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
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sa2depth.infer import unique_names

    written = failed = 0
    names = unique_names(files)
    _tell_names(files, names)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        stage("predicting", len(files), shown=not console.is_terminal) as lines,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("predicting", total=len(files))
        for file, name in zip(files, names, strict=True):
            progress.update(task, description=escape(name))
            try:
                # free each result before the next: those of a 216-megapixel photograph take 1.7 GB
                written += _written(
                    _predicted(predictor, file, name), output, name, formats, depth_range, colormap, written
                )
            except (DataError, ShapeError) as error:  # the image is at fault; other errors end the run
                if strict:
                    raise
                failed += 1
                complain(str(error))
            progress.advance(task)
            lines.advance()
    return written, failed


def _predicted(predictor: "Predictor", file: Path, name: str) -> "Prediction":
    """The prediction of one file.

    Raises:
        DataError, ShapeError: the file is at fault or needs too much memory; the message names it.
    """
    try:
        return predictor(file, id=name)
    except ShapeError as error:
        raise ShapeError(f"{file}: {error}") from error
    except (MemoryError, RuntimeError) as error:  # PyTorch's errors of memory are RuntimeErrors
        if not (isinstance(error, MemoryError) or "memory" in str(error)):
            raise
        raise DataError(
            f"{file}: the network needs more memory for this image than there is. Give --max-side 1024 or less "
            f"({str(error).partition(chr(10))[0] or type(error).__name__})"
        ) from error


def _written(
    prediction: "Prediction",
    output: Path,
    name: str,
    formats: list[str],
    depth_range: tuple[float, float] | None,
    colormap: str,
    before: int,
) -> int:
    """Write a prediction; returns the number of files.

    Raises:
        DataError: the name is too long for a file.
        _OutputError: the folder cannot be written, so that the remaining images would fail too.
    """
    from sa2depth.infer import write

    try:
        return len(write(prediction, output, name, formats, depth_range, colormap))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{name}: too long to name its results: rename the image") from error
        raise _OutputError(
            f"{output}: cannot be written ({_reason(output, error)}); the {before} files written before "
            "are complete"
        ) from error


class _OutputError(UserError):
    """The folder of the results cannot be written."""


def _reason(folder: Path, error: OSError) -> str:
    """The reason that the system gives; if NumPy left it out, the disk is usually full."""
    if error.strerror:
        return error.strerror
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < 1 << 20:
            return f"no space left on the disk: {error}"
    return str(error)


def _check_folder(output: Path) -> None:
    """Before the model is loaded, refuse a folder that cannot be written."""
    try:
        there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    except OSError as error:
        raise _OutputError(f"{output}: cannot be written ({error.strerror or error})") from error
    if not there.is_dir():
        raise _OutputError(f"{output}: cannot be written, {there} is a file; choose a folder with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _OutputError(
            f"{output}: cannot be written, you have no permission to change {there}; choose another with --output"
        )


def _tell_names(files: list[Path], names: list[str]) -> None:
    """Tell which results belong to which image if several have the same name."""
    changed = [(file, name) for file, name in zip(files, names, strict=True) if file.stem != name]
    for file, name in changed[:_NAMES_SHOWN]:
        typer.echo(f"note: the results of {file} are named {name}: another image has the same name", err=True)
    if len(changed) > _NAMES_SHOWN:
        typer.echo(f"note: likewise for {len(changed) - _NAMES_SHOWN:,} more images", err=True)


def _show_warnings() -> None:
    """Send the package's warnings to stderr, one line each."""
    from PIL import Image

    # the limit is --max-megapixels
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # these concern damaged tags and name no file; sa2depth.image_files reports those that matter
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    log = logging.getLogger("sa2depth")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines(logging.WARNING))


class _Lines(logging.Handler):
    """Writes each message on one line, however long, so that file names stay whole if the output is searched."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.secho("warning: ", fg=typer.colors.YELLOW, err=True, nl=False)
        typer.echo(record.getMessage(), err=True)
