"""`sa2depth data check`: checks that all files exist, can be read and match the data set's description."""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.data.choose import build_sources, compose_data
from sa2depth.errors import ConfigError
from sa2depth.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from sa2depth.data.check.data_set import Report, SplitReport
    from sa2depth.data.check.frames import Problem
    from sa2depth.data.sample import Source

_NAMED = 5
"""Number of problems of each kind that the screen names; the JSON file has all."""
_SPLITS = {"train": ("train", "val"), "val": ("val",), "test": ("test",), "all": ("train", "val", "test")}


def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A file in conf/data, e.g. nyu_sync.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE...]", help="Options of training, e.g. data.train.split=24231."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set; by default as configured.")
    ] = None,
    split: Annotated[str, typer.Option(help="train (including held-out images), val, test or all.")] = "all",
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads; by default one for each core, at most 8.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look for all files, but open only 200 images of each list.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all problems to this file.")
    ] = None,
) -> None:
    """Check a data set on disk.

    Opens every file and compares counts, sizes, kinds, depth ranges and splits.
    Exit status 0: good, 1: problems, 2: wrong usage.
    """
    from rich.console import Console

    if split not in _SPLITS:
        raise ConfigError(f"--split {split}: choose one of {', '.join(_SPLITS)}")
    cfg = compose_data(dataset, root, overrides or ())
    sources, unlisted = build_sources(cfg, _SPLITS[split])
    try:
        report = _run(sources, unlisted, workers, quick, Console(stderr=True))
    except KeyboardInterrupt:
        typer.echo("interrupted: no verdict", err=True)
        raise typer.Exit(130) from None
    console = Console(highlight=False, soft_wrap=True)
    for part in report.splits:
        _print_split(console, part)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    _print_problems(console, report.leaks, "")
    if json_file is not None:
        from sa2depth.atomic import atomic_path

        with atomic_path(json_file) as path:
            path.write_text(json.dumps({"dataset": dataset, **report.as_dict()}, indent=1))
        console.print(f"wrote {json_file}", markup=False)
    console.print(report.verdict, style="bold green" if report.good else "bold red", markup=False)
    if not report.good:
        raise typer.Exit(1)


def _run(
    sources: "Mapping[str, Source]",
    unlisted: "Mapping[str, str]",
    workers: int | None,
    quick: bool,
    console: "Console",
) -> "Report":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sa2depth.data.check.data_set import check as check_sources
    from sa2depth.data.check.data_set import image_count

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    total = image_count(sources, quick)
    with (
        stage("opening images", total, shown=not console.is_terminal) as lines,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("opening", total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)
            lines.advance(count)

        return check_sources(sources, workers, quick, advance, unlisted=unlisted)


def _print_split(console: "Console", part: "SplitReport") -> None:
    console.print(f"{part.name}: {part.title}", style="bold", markup=False)
    if part.images:
        truth = f", {part.without_truth:,} of them without ground truth" if part.without_truth else ""
        lines = [f"images  {part.images:,} in its list{truth}; {part.opened:,} opened"]
        if part.files:
            lines.append(f"files   {part.files:,}, {part.missing:,} missing, below {part.folder}")
        if part.depth is not None:
            low, median, high = part.depth
            lines.append(
                f"depth   {low:.3g} to {high:.3g} m (1st and 99th percentile), median {median:.3g} m"
            )
        for line in lines + [f"note    {note}" for note in part.notes]:
            console.print(f"  {line}", markup=False)
    _print_problems(console, part.problems, part.folder)
    if part.missing and part.advice:
        for line in part.advice.splitlines():
            console.print(f"    {line}", style="yellow", markup=False)


def _print_problems(console: "Console", problems: "list[Problem]", folder: str) -> None:
    """Print each kind of problem with its count and the first names."""
    from sa2depth.data.check.frames import MEANING

    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    for kind, meaning in MEANING.items():
        found = by_kind.get(kind, [])
        if not found:
            continue
        console.print(f"  {len(found):,} {meaning}", style="red", markup=False)
        for problem in found[:_NAMED]:
            console.print(f"    {_short(problem, folder)}", markup=False)
        if len(found) > _NAMED:
            console.print(f"    ... and {len(found) - _NAMED:,} more (--json FILE lists all)", markup=False)


def _short(problem: "Problem", folder: str) -> str:
    """One line about a problem; file names are relative to ``folder``."""
    message = problem.message.removeprefix(f"{problem.file}: ")
    file = problem.file.removeprefix(f"{folder}/") if folder else problem.file
    if problem.kind == "no_list":
        return message.replace("\n", "\n    ")
    if problem.kind == "missing":
        return file + message.removeprefix("there is no such file")
    name = problem.id if problem.kind.startswith("leaked") else file or problem.id
    return f"{name}: {message}"
