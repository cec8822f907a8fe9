"""The list of `sa2depth data` commands. A new one is a file in this folder and a line here."""

import typer

from sa2depth.cli.data.check import check
from sa2depth.cli.data.prepare import NamesRecipes, prepare
from sa2depth.cli.data.show import show
from sa2depth.cli.data.speed import speed
from sa2depth.cli.data.submission import validate_submission, write_submission
from sa2depth.cli.friendly import friendly

data = typer.Typer(name="data", help="Data sets: prepare, check, show, time, submit.", no_args_is_help=True)

data.command(cls=NamesRecipes)(friendly(prepare))
data.command()(friendly(check))
data.command()(friendly(show))
data.command()(friendly(speed))
data.command("write-submission")(friendly(write_submission))
data.command("validate-submission")(friendly(validate_submission))
