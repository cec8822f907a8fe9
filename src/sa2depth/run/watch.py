"""A thread that ends the first of several processes when another one has failed, however deep the first one waits.

Lightning's own watch kills it with SIGKILL: no message, no status of its own. Python's exceptions come too late: a
process that waits in NCCL, in CUDA or for others to join hears nothing.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver  # noqa: PLC2701

_POLL_S = 0.2
_PATIENCE_S = 3.0
_LATEST_S = 30.0
_FIRST = "SA2DEPTH_FIRST_PROCESS"  # its number, for those that it starts
_CTRL_C = 128 + signal.SIGINT  # a terminal sends it to all processes, whichever ends first


class Child(Protocol):
    """What is used of ``subprocess.Popen``."""

    def poll(self) -> int | None:
        """Status of the process; None while it runs."""

    def kill(self) -> None:
        """End it."""


def how(rank: int, status: int) -> str:
    """Which process failed, and how, in words.

    Args:
        rank: its number.
        status: of ``subprocess.Popen``: negative for a signal.
    """
    if status >= 0:
        return f"process {rank} of the training ended with status {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    often = ", often the kernel's out-of-memory killer" if status == -signal.SIGKILL else ""
    return f"process {rank} of the training was killed by signal {-status}{name}{often}"


def status_of(status: int) -> int:
    """Exit status where another process failed: its own for an error that the user can fix and for Ctrl-C, else 1."""
    if status in (_CTRL_C, -signal.SIGINT):
        return _CTRL_C
    return 2 if status == 2 else 1


def first_failure(children: Sequence[Child]) -> tuple[int, int] | None:
    """Rank and status of a process that failed; None: all run or have ended well."""
    for rank, child in enumerate(children, start=1):
        if status := child.poll():
            return rank, status
    return None


class Watch:
    """Looks after the processes that this one has started.

    Args:
        children: gives them; none as long as they have not been started.
        patience_s: how long the main thread may take to notice a failure itself, and to say more about it.
        leave: ends this process.
    """

    def __init__(
        self,
        children: Callable[[], Sequence[Child]],
        patience_s: float = _PATIENCE_S,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._children, self._patience_s, self._leave = children, patience_s, leave
        self._over = threading.Event()
        self._own: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sa2depth-watch", daemon=True)

    def start(self) -> None:
        """Begin, before the processes are started."""
        self._thread.start()

    def stop(self) -> None:
        """The processes need one another no longer, or the main thread has noticed what happened."""
        self._over.set()

    def notice(self, error: BaseException) -> None:
        """The main thread has failed, too, perhaps first, and is putting things in order."""
        self._own = error

    def wait(self, limit_s: float = _LATEST_S) -> tuple[int, int] | None:
        """Wait for the processes to end, and end those that do not.

        Returns:
            Rank and status of one that failed.
        """
        deadline = time.monotonic() + limit_s
        while any(child.poll() is None for child in self._children()) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 4)
        failure = first_failure(self._children())
        for child in self._children():
            if child.poll() is None:
                child.kill()
        return failure

    def _run(self) -> None:
        while not self._over.wait(_POLL_S):
            children = self._children()
            if children:
                dismiss_lightnings()
            failure = first_failure(children)
            if failure is None:
                continue
            if self._over.wait(self._patience_s) or (self._own and self._over.wait(_LATEST_S)):
                return
            self._end(children, *failure)
            return

    def _end(self, children: Sequence[Child], rank: int, status: int) -> None:
        for child in children:
            child.kill()
        flush_everything()
        if self._own is not None:
            traceback.print_exception(self._own)
        advice = "" if status < 0 else ": see what it wrote above"
        interrupted = status_of(status) == _CTRL_C
        sys.stderr.write("interrupted\n" if interrupted else f"error: {how(rank, status)}{advice}\n")
        flush_everything()
        self._leave(status_of(status))


def flush_everything() -> None:
    """Before a process ends without Python's own clean-up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # None where it was closed from the start
            stream.flush()


def dismiss_lightnings() -> None:
    """Keep Lightning from killing this process some seconds after one that it has started has failed."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def be_first() -> None:
    """In a process that starts others: tell them whose end is theirs, whatever this one was told itself."""
    os.environ[_FIRST] = str(os.getpid())


def end_with_parent(leave: Callable[[int], None] = os._exit) -> None:
    """In a process that Lightning has started: end when the first one is gone, for whom this one would wait in vain."""
    given = os.environ.get(_FIRST, "")  # it may be gone already: imports take seconds
    parent = int(given) if given.isdigit() else os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        sys.stderr.write("error: the first process of the training is gone: this one ends, too\n")
        sys.stderr.flush()
        leave(1)

    threading.Thread(target=look, name="sa2depth-parent", daemon=True).start()
