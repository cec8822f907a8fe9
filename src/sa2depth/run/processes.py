"""How the processes of a run end: together, and with a status that says why."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from sa2depth.errors import UserError

_PATIENCE_S = 2.0

_failed_with: int | None = None  # the status of this process, once it is one of several and has failed


@contextmanager
def ending_together(trainer: L.Trainer) -> Iterator[None]:
    """Where the process that has started the others fails, it ends them: over NCCL they would wait for it in vain.

    The reverse is Lightning's work, which kills everything a few seconds after a process that it has started has ended;
    over gloo this process hears of it earlier, by a lost connection. A process of several that fails ends without
    NCCL's clean-up, which waits for the others.

    A run that was interrupted ends with the status that shells expect (130 after Ctrl-C, 143 after SIGTERM; by itself
    Lightning ends with 0 after the latter) and says how to go on.

    Raises:
        UserError: another process failed first, and has said why.
        SystemExit: the run was interrupted.
    """
    try:
        yield
    except BaseException as error:
        others: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
        # gloo's lost connections have no type of their own
        lost = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        failed = _failed(others) if lost else None
        _stop_watching()
        for process in others:
            process.kill()
        reported: BaseException = error
        if failed is not None:
            reported = UserError(f"another process of the training {failed}: see what it wrote above")
        elif (status := _interrupted(error)) is not None:
            _say_how_to_go_on(trainer)
            reported = SystemExit(status)
        if trainer.world_size > 1:
            _end_without_waiting(reported, first=trainer.is_global_zero)
        if reported is error:
            raise
        raise reported from None


def _stop_watching() -> None:
    """Keep Lightning from killing this process, too, some seconds after those that it has started."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def _end_without_waiting(error: BaseException, *, first: bool) -> None:
    """Once this process is done, it ends: NCCL's clean-up would wait for processes that have failed, or wait for this.

    The first one's loggers have registered for its end, and come before; the others have none.
    """
    global _failed_with
    code = error.code if isinstance(error, SystemExit) else 2 if isinstance(error, UserError) else 1
    _failed_with = code if isinstance(code, int) else 0 if code is None else 1
    if not first:
        atexit.unregister(_end_now)
        atexit.register(_end_now)  # registered last, called first


def _end_now() -> None:
    if _failed_with is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_failed_with)


atexit.register(_end_now)


def _interrupted(error: BaseException) -> int | None:
    if isinstance(error, SIGTERMException):
        return 128 + signal.SIGTERM
    # Lightning has put things in order and left
    left = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    return 128 + signal.SIGINT if left or isinstance(error, KeyboardInterrupt) else None


def _say_how_to_go_on(trainer: L.Trainer) -> None:
    if not trainer.is_global_zero:
        return
    folders = [Path(f) for c in trainer.checkpoint_callbacks if (f := getattr(c, "dirpath", None))]
    advice = ": no checkpoint was written yet" if folders else ""
    for folder in folders:
        if (last := folder / "last.ckpt").exists():
            advice = f": resume={last} goes on from there"
    sys.stderr.write(f"interrupted{advice}\n")


def _failed(processes: list["Popen[bytes]"]) -> str | None:
    """How the first of some processes failed, which may be about to end."""
    deadline = time.monotonic() + _PATIENCE_S
    while processes and time.monotonic() < deadline:
        for code in (process.poll() for process in processes):
            if code:
                return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        time.sleep(0.05)
    return None


class EndAtSigterm(L.Callback):
    """SIGTERM ends one process of several where it is, and `ending_together` the others.

    Lightning's own handler talks to the other processes from wherever the signal finds this one, which mostly waits
    for ever. Where SLURM is to queue the job again, SIGTERM is Lightning's.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signal over; Lightning gives it back at the end."""
        _take_over(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As at the start of a training."""
        _take_over(trainer)


def _take_over(trainer: L.Trainer) -> None:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    queued_again = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    may = threading.current_thread() is threading.main_thread()  # Python's rule
    if trainer.world_size > 1 and not queued_again and may:
        signal.signal(signal.SIGTERM, _end)


def _end(signum: int, frame: object) -> None:
    raise SIGTERMException
