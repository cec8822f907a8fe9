"""The `sa2depth` command: one file per sub-command, with heavy imports inside functions so that help is instant."""

import sys
from collections.abc import Sequence

from sa2depth.interrupts import ending_at_ctrl_c
from sa2depth.limits import told_limit
from sa2depth.output import quiet_pipes

with ending_at_ctrl_c():
    from sa2depth.cli.app import app
    from sa2depth.cli.friendly import complain

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``sa2depth`` and ``python -m sa2depth``.

    Args:
        arguments: used instead of ``sys.argv``.
    """
    try:
        with ending_at_ctrl_c(), quiet_pipes():
            app(arguments)
    except OSError as error:  # writing to standard output failed; commands report their own errors
        if (message := told_limit(error)) is None:
            raise
        complain(message)
        sys.exit(2)
