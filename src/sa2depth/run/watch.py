"""A thread that ends the first of several processes when another one has failed, wherever the first one waits.

Lightning's own watch kills it with SIGKILL, without a message or a useful status. Python's exceptions come too late: a
process that waits in NCCL, in CUDA or for others to join does not receive them.
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
_FIRST = "SA2DEPTH_FIRST_PROCESS"  # number of the first process, for those that it starts
_CTRL_C = 128 + signal.SIGINT  # a terminal sends Ctrl-C to all processes, and any of them may end first


class Child(Protocol):
    """The part of ``subprocess.Popen`` that is used here."""

    def poll(self) -> int | None:
        """Status of the process; None while it runs."""

    def kill(self) -> None:
        """End the process."""


def how(rank: int, status: int) -> str:
    """Say in words which process failed, and how.

    Args:
        rank: number of the process.
        status: status from ``subprocess.Popen``, negative for a signal.
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
    """Exit status after another process failed: the same for an error that the user can fix and for Ctrl-C, else 1."""
    if status in (_CTRL_C, -signal.SIGINT):
        return _CTRL_C
    return 2 if status == 2 else 1


def first_failure(children: Sequence[Child]) -> tuple[int, int] | None:
    """Rank and status of a process that failed; None if all run or have succeeded."""
    for rank, child in enumerate(children, start=1):
        if status := child.poll():
            return rank, status
    return None


class Watch:
    """Watches the processes that this one has started.

    Args:
        children: returns the processes; none before they are started.
        patience_s: seconds that the main thread has to notice a failure itself, since it can say more about it.
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
        """Start watching, before the processes are started."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching: the processes no longer need one another, or the main thread has noticed the failure."""
        self._over.set()

    def notice(self, error: BaseException) -> None:
        """Note that the main thread has failed, too, perhaps first, and is cleaning up."""
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
    """Flush logs and streams before a process ends without Python's own clean-up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(
            OSError, ValueError, AttributeError
        ):  # the stream is None if it was closed from the start
            stream.flush()


def dismiss_lightnings() -> None:
    """Keep Lightning from killing this process some seconds after one of its children has failed."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def be_first() -> None:
    """Tell the processes that this one will start to end with it, whatever this one was told itself."""
    os.environ[_FIRST] = str(os.getpid())


def end_with_parent(leave: Callable[[int], None] = os._exit) -> None:
    """Let a process that Lightning has started end when the first one is gone, instead of waiting forever for it."""
    given = os.environ.get(_FIRST, "")  # the parent may be gone already, because imports take seconds
    parent = int(given) if given.isdigit() else os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        sys.stderr.write("error: the first process of the training is gone, so this one ends, too\n")
        sys.stderr.flush()
        leave(1)

    threading.Thread(target=look, name="sa2depth-parent", daemon=True).start()
