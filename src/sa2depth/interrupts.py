"""Ctrl-C ends a program with status 130 and one line, even in the middle of an import.

C code turns the `KeyboardInterrupt` inside an import into other errors, and libraries catch it. So a signal handler
remembers that Ctrl-C was pressed.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STATUS = 128 + signal.SIGINT
_handlers: list[Any] = []  # handlers of the active contexts


@contextmanager
def ending_at_ctrl_c(*, shown: bool = True, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ctrl-C in this context raises ``SystemExit(130)`` at its end, after the line ``interrupted`` on stderr.

    Args:
        shown: whether the line is written; only one of several processes should write it.
        passing: exceptions that pass unchanged, as `SystemExit` does, because their source has told the user already.

    Raises:
        SystemExit: Ctrl-C was pressed.
    """
    pressed = False
    before: Any = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)

    # only the main thread can have handlers, and a program that ignores Ctrl-C or has its own handler keeps it
    raises = before is signal.default_int_handler or before in _handlers
    ours = raises and threading.current_thread() is threading.main_thread()
    if ours:
        _handlers.append(press)
        signal.signal(signal.SIGINT, press)
    try:
        yield
    except KeyboardInterrupt:
        pressed = True
    except passing:
        raise
    except Exception:
        if not pressed:
            raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
            _handlers.remove(press)
    if pressed:
        if shown:
            with suppress(OSError, ValueError):
                sys.stderr.write("interrupted\n")
                sys.stderr.flush()
        raise SystemExit(STATUS)
