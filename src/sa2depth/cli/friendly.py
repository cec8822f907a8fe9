"""Errors that a user can fix end in one message and exit status 2; any other error is a bug with a traceback."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from sa2depth.errors import UserError
from sa2depth.interrupts import ending_at_ctrl_c
from sa2depth.limits import told_limit

P = ParamSpec("P")
R = TypeVar("R")


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Print a `UserError`, or an error of the machine's limits, without traceback and exit with status 2.

    Ctrl-C exits with status 130 and the line ``interrupted``, unless the command itself says more about it.

    Args:
        command: a typer command.

    Returns:
        The same command for typer: its signature and help are kept.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with ending_at_ctrl_c(passing=(typer.Exit,)):
                return command(*args, **kwargs)
        except UserError as error:
            complain(str(error))
            raise typer.Exit(2) from error
        except Exception as error:
            if (message := told_limit(error)) is None:
                raise
            complain(message)
            raise typer.Exit(2) from error

    return wrapped


def complain(message: str) -> None:
    """Print an error message on stderr."""
    typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.echo(message, err=True)
