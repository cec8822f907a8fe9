"""The list of sub-commands. A new one is a file in this folder and a line here."""

from typing import Annotated

import typer

from sa2depth.cli.bench import bench
from sa2depth.cli.convert import convert
from sa2depth.cli.data.app import data
from sa2depth.cli.doctor import doctor
from sa2depth.cli.friendly import friendly
from sa2depth.cli.predict import predict
from sa2depth.cli.report import report
from sa2depth.version import __version__

app = typer.Typer(
    name="sa2depth",
    help="Metric depth from one image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sa2depth {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Metric depth from one image.

    Training and evaluation: python -m sa2depth.train, python -m sa2depth.eval.
    """


app.command()(friendly(predict))
app.command()(friendly(convert))
app.command()(friendly(report))
app.add_typer(data)
app.command()(friendly(doctor))
app.command()(friendly(bench))
