"""`sa2depth data write-submission` and `validate-submission`: write and check results for KITTI's server."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.friendly import complain
from sa2depth.cli.options import Checkpoint, Device, LegacyDepth, Precision, Trusted
from sa2depth.errors import ConfigError
from sa2depth.stages import stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from sa2depth.data.frame import Frame
    from sa2depth.data.io.depth_files import DepthMap
    from sa2depth.data.sets.kitti.submission import SubmissionReport
    from sa2depth.infer import Predictor


def write_submission(
    checkpoint: Checkpoint,
    root: Annotated[
        Path,
        typer.Option(metavar="KITTI", help="Folder with depth_selection/test_depth_prediction_anonymous."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ZIP", help="Zip file to write.")] = Path(
        "submission.zip"
    ),
    min_depth: LegacyDepth = None,
    max_depth: LegacyDepth = None,
    trusted: Trusted = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    flip: Annotated[
        bool,
        typer.Option("--flip/--no-flip", help="Average with the mirrored image, as for published numbers."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace ZIP if it exists.")] = False,
) -> None:
    """Predict the 500 anonymous test images of KITTI, pack them for the server and check the zip."""
    from rich.console import Console

    if output.exists() and not force:
        raise ConfigError(f"{output} exists: choose another name, or replace it with --force")

    from sa2depth.data.sets.kitti import submission
    from sa2depth.data.sets.kitti.official import official

    listing = official(root, "test")
    listing.require()

    with stage("loading PyTorch"):
        from sa2depth.infer import Predictor
        from sa2depth.targets import parse_trusted
        from sa2depth.weights import load_model

    known = parse_trusted(trusted, "--trusted")
    model = load_model(checkpoint, min_depth=min_depth, max_depth=max_depth, trusted=known)
    predictor = Predictor(
        model,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # the Predictor rejects other values
        flip=flip,
    )
    console = Console(stderr=True)
    with _progress(console) as progress:
        submission.write_submission(output, _predictions(predictor, listing.frames, progress))
    _tell(_validated(output, console))


def validate_submission(
    archive: Annotated[Path, typer.Argument(metavar="ZIP", help="The zip that you want to submit.")],
) -> None:
    """Check a submission to KITTI's depth prediction server; exit status 1 if it would be refused."""
    from rich.console import Console

    _tell(_validated(archive, Console(stderr=True)))


def _predictions(
    predictor: "Predictor", frames: "Sequence[Frame]", progress: "Progress"
) -> "Iterator[tuple[int, DepthMap]]":
    with stage("predicting", len(frames), shown=not progress.console.is_terminal) as lines:
        for number, frame in enumerate(progress.track(frames, description="predicting")):
            yield number, predictor(frame.image, id=frame.id).depth
            lines.advance()


def _validated(archive: Path, console: "Console") -> "SubmissionReport":
    from sa2depth.data.sets.kitti import submission

    with stage("checking", shown=not console.is_terminal), _progress(console) as progress:
        task = progress.add_task("checking", total=submission.COUNT)
        return submission.validate_submission(archive, lambda done: progress.update(task, completed=done))


def _tell(report: "SubmissionReport") -> None:
    """Print every error and warning and a verdict; exit status 1 if there is an error."""
    for error in report.errors:
        complain(error)
    for warning in report.warnings:
        typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW, err=True)
    if not report.valid:
        count = len(report.errors)
        errors = f"{count} error{'s' if count > 1 else ''}"
        print(f"{report.path}: not ready to submit, {errors}; {report.images} images are correct")
        raise typer.Exit(1)
    size = report.path.stat().st_size / 1e6
    print(f"{report.path}: ready to submit, {report.images} images, {size:.1f} MB")


def _progress(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
