"""Ctrl-C ends a program with status 130 and one line, also in the middle of an import.

C code turns the `KeyboardInterrupt` inside an import into other errors, and libraries catch it: that Ctrl-C was pressed
counts, not how it comes out.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STATUS = 128 + signal.SIGINT
_handlers: list[Any] = []  # of the contexts that are entered


@contextmanager
def ending_at_ctrl_c(*, shown: bool = True, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ctrl-C in this context raises ``SystemExit(130)`` at its end, after the line ``interrupted`` on stderr.

    Args:
        shown: whether the line is written; only one of several processes should write it.
        passing: exceptions that go through all the same, as `SystemExit` does: what raised them has told the user.

    Raises:
        SystemExit: Ctrl-C was pressed.
    """
    pressed = False
    before: Any = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)

    # other threads have no handlers, and a program that ignores Ctrl-C or handles it otherwise goes on doing so
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
