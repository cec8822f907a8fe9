"""`sa2depth report`: writes one self-contained HTML page about a finished evaluation."""

from pathlib import Path
from typing import Annotated

import typer

from sa2depth.errors import ConfigError
from sa2depth.stages import stage


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs, with a metrics.json; each gets its own page."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file, for a single RUN. Default: RUN/report.html."),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare",
            "-c",
            metavar="OTHER",
            help="Another run of the same protocol to compare image by image; may be given several times.",
        ),
    ] = None,
) -> None:
    """Write RUN/report.html: a page with scores, how they were measured, charts, pictures and a table of all images."""
    if output is not None and len(runs) > 1:
        raise ConfigError(
            f"--output names one file, but there are {len(runs)} runs: leave it out or name one"
        )
    if output is not None and output.is_dir():
        raise ConfigError(
            f"--output {output} is a folder: name a file in it, such as {output / 'report.html'}"
        )

    with stage("loading PyTorch"):
        from sa2depth.report.page import write_page
        from sa2depth.report.run_files import read_run

    # read all runs before the first page is written, so that a misspelt name is reported at once
    with stage("reading runs"):
        files = [read_run(run) for run in runs]
        others = [read_run(other) for other in compare or ()]
    if len(files) == 1 and any(other.folder == files[0].folder for other in others):
        raise ConfigError(f"--compare {files[0].folder} is the run itself: name another run")
    for run in files:
        # among several runs, one may be the reference of the others
        with stage("writing the page"):
            path = write_page(run, output, [other for other in others if other.folder != run.folder])
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
        for gap in run.gaps:
            print(f"  {gap}")
