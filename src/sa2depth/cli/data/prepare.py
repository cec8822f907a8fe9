"""`sa2depth data prepare`: arranges a user's archives or folders in the layout that the package reads."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from sa2depth.cli.friendly import complain
from sa2depth.errors import ConfigError, DataError
from sa2depth.stages import stage

if TYPE_CHECKING:
    from rich.console import Console

    from sa2depth.data.prepare import Outcome, Plan, Recipe, SplitState
    from sa2depth.data.prepare.plan import Step

_SHOWN = 5


class NamesRecipes(TyperCommand):
    """Help that names the data sets with a recipe; they are looked up when it is shown."""

    def format_help(self, *arguments: Any, **options: Any) -> None:
        """Write the help."""
        from sa2depth.data.sets import recipes

        dataset = next(param for param in self.params if param.name == "dataset")
        assert isinstance(dataset, TyperArgument)
        *names, last = sorted(recipes())
        dataset.help = f"{', '.join(names)} or {last}."
        super().format_help(*arguments, **options)


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A data set that has a recipe.",
        ),
    ],
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="Folder to fill, e.g. datasets/kitti.")],
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="PATH", help="Archive, folder or .mat file; may be given several times."
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the files of folders instead of linking to them.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Extract all frames of the archives, not only those of the splits.")
    ] = False,
    velodyne: Annotated[bool, typer.Option("--velodyne", help="KITTI: also the laser scans.")] = False,
    depth: Annotated[
        str | None,
        typer.Option(metavar="raw|filled", help="For NYU's .mat: measured (default) or in-painted depth."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the contents of files that already exist.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default one for each core, at most 8.")
    ] = None,
) -> None:
    """Arrange a data set in the layout that training and evaluation expect.

    Folders are linked; only the files needed are extracted from archives.
    You may stop it at any moment: the same command continues.
    Exit status 0: complete, 1: files are still missing, 2: wrong usage or a broken source.
    """
    from rich.console import Console

    from sa2depth.data.prepare import make_plan, what_is_missing
    from sa2depth.data.prepare.sources import open_sources
    from sa2depth.data.sets import make_recipe

    recipe = make_recipe(dataset, root, everything=everything, velodyne=velodyne, depth=depth)
    if not sources:
        raise ConfigError(f"no source for {recipe.title} is given: use --from with {recipe.archives}")
    console = Console(stderr=True)
    with console.status("reading the sources and the folder"):
        opened = open_sources(sources, recipe)
        if depth and not any(source.path.suffix.lower() == ".mat" for source in opened):
            raise ConfigError(
                "--depth chooses between the depths of a .mat file, and no such file was given: leave it out, or add "
                "--from nyu_depth_v2_labeled.mat"
            )
        plan = make_plan(recipe, opened, copy=copy)
    _show_plan(plan, recipe)
    if not any(count for _, count in plan.found) and not recipe.enough(what_is_missing(recipe)):
        raise DataError(f"no file of {recipe.title} was found in these sources. Expected {recipe.archives}")
    plan.require_space()
    outcome = None
    if not dry_run:
        outcome = _carry_out(plan, workers, verify, console)
        _show_outcome(outcome)
    _give_verdict(recipe, what_is_missing(recipe, plan.targets if dry_run else ()), outcome)


def _show_plan(plan: "Plan", recipe: "Recipe") -> None:
    """Print sources, counts and bytes."""
    from sa2depth.data.prepare.plan import State

    print(f"{recipe.title} below {plan.root}")
    for source, count in plan.found:
        print(f"  {source.path}: {source.kind}, {count:,} files of this data set")
    to_do = plan.to_do
    links = sum(step.link for step in to_do)
    states = plan.states
    rows = [
        (
            f"{len(to_do) - links:,} files to write, about {plan.bytes_needed() / 1e6:,.1f} MB",
            len(to_do) - links,
        ),
        (f"{links:,} links to make", links),
        (f"{states[State.WHOLE]:,} files exist already", states[State.WHOLE]),
        (
            f"{states[State.DIFFERS]:,} of them replace a file or link with other contents",
            states[State.DIFFERS],
        ),
        (f"{states[State.DANGLING]:,} of them replace broken links", states[State.DANGLING]),
        (f"{plan.twice:,} files are in more than one source; the first is used", plan.twice),
        (f"{len(plan.leftovers):,} unfinished files of a stopped run are removed", plan.leftovers),
        (f"{len(plan.dangling):,} files of the sources are broken links", plan.dangling),
    ]
    for text, wanted in rows:
        if wanted:
            print(f"  {text}")


def _carry_out(plan: "Plan", workers: int | None, verify: bool, console: "Console") -> "Outcome":
    """Carry out the plan with a progress bar."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from sa2depth.data.prepare import execute
    from sa2depth.data.prepare.engine import work

    steps = work(plan, verify=verify)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with (
        stage(
            "preparing, in bytes", sum(_weight(step) for step in steps), shown=not console.is_terminal
        ) as lines,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        # A link counts as one byte, so that the bar moves even if there is nothing else.
        task = progress.add_task("preparing", total=sum(_weight(step) for step in steps))

        def tick(step: "Step") -> None:
            progress.update(task, advance=_weight(step))
            lines.advance(_weight(step))

        try:
            return execute(plan, workers=workers, verify=verify, tick=tick)
        except KeyboardInterrupt:
            complain("stopped; every file written so far is complete. Run the same command again to continue")
            raise typer.Exit(130) from None


def _weight(step: "Step") -> int:
    return 1 if step.link else step.member.size


def _show_outcome(outcome: "Outcome") -> None:
    counts = {
        "written": outcome.written,
        "links made": outcome.linked,
        "compared and correct": outcome.verified,
        "compared, wrong and written again": outcome.repaired,
    }
    print(
        "done: "
        + (", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing to do")
    )
    for failure in outcome.failures[:_SHOWN]:
        complain(failure)
    if len(outcome.failures) > _SHOWN:
        complain(f"and {len(outcome.failures) - _SHOWN:,} more files could not be read from their sources")


def _give_verdict(recipe: "Recipe", states: "Sequence[SplitState]", outcome: "Outcome | None") -> None:
    """Print a line for each split and one for all, and set the exit status."""
    origins: Counter[str] = Counter()
    for state in states:
        if state.later:
            print(f"  {state.title}: the folder is searched for images, so nothing can be compared yet")
        elif state.problem:
            print(f"  {state.problem}")
        elif state.complete:
            print(f"  {state.title}: complete, {state.frames:,} images")
        else:
            origins += state.origins
            print(f"  {state.title}: {len(state.missing):,} of {state.files:,} files are missing")
            for path in state.missing[:_SHOWN]:
                print(f"    {path}")
    failed = outcome is not None and bool(outcome.failures)
    enough = recipe.enough(states) and not failed
    if enough:
        ready = "; ".join(state.title for state in states if state.complete)
        print(f"{'WOULD BE COMPLETE' if outcome is None else 'COMPLETE'}: {ready}")
        return
    names = [f"{name} ({count:,} files)" for name, count in origins.most_common(_SHOWN)]
    more = f" and {len(origins) - _SHOWN:,} more archives" if len(origins) > _SHOWN else ""
    needed = f"still needed: {', '.join(names)}{more}" if names else f"needed: {recipe.archives}"
    if failed:
        needed = "some sources are damaged, see above" + (f"; {needed}" if names else "")
    print(f"{'WOULD BE INCOMPLETE' if outcome is None else 'INCOMPLETE'}: {needed}")
    raise typer.Exit(1)
