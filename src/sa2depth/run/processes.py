"""End the processes of a run together, with a status that says why."""

import atexit
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
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from sa2depth.config.cluster import LIGHTNING, requeued_by_slurm, started
from sa2depth.errors import UserError
from sa2depth.quoting import override
from sa2depth.run.watch import (
    Watch,
    be_first,
    dismiss_lightnings,
    end_with_parent,
    first_failure,
    flush_everything,
    how,
    status_of,
)

_PATIENCE_S = 10.0

_failed_with: int | None = None  # the status of this process, if it is one of several and has failed
_watch: Watch | None = None  # watches the processes that this one has started


@contextmanager
def ending_together(trainer: L.Trainer) -> Iterator[None]:
    """If one of several processes fails, end all of them, and let the first one say which one failed and why.

    The first process ends those that it has started, because over NCCL they would wait for it forever. If another one
    fails, the first learns of it by a lost connection, or from `Watch` if it waits inside a library. A process of
    several that fails ends without NCCL's clean-up, which waits for the others.

    An interrupted run ends with the status that shells expect (130 after Ctrl-C, 143 after SIGTERM, where Lightning
    itself ends with 0) and says how to resume.

    Raises:
        UserError: another process failed first with an error that the user can fix, and has printed it.
        SystemExit: another process failed in any other way, or the run was interrupted.
    """
    global _watch
    launcher = trainer.strategy.launcher

    def children() -> list[Popen[bytes]]:
        return getattr(launcher, "procs", [])

    watch = Watch(children)
    if hasattr(launcher, "procs"):
        _watch = watch
        watch.start()
        found = started()
        if found is not None and found.by == LIGHTNING and found.rank > 0:
            end_with_parent()
        else:
            be_first()
    try:
        yield
        watch.stop()
        failure = watch.wait() if children() else None
        if failure is not None:
            sys.stderr.write(f"error: {how(*failure)} after the last step: the results are complete\n")
            raise SystemExit(1)
    except BaseException as error:
        watch.stop()
        # gloo has no error type of its own for lost connections
        lost = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        failure = _failed(children()) if lost else None
        dismiss_lightnings()
        for process in children():
            process.kill()
        reported: BaseException = error
        if failure is not None:
            reported = _of_another(*failure)
        elif (status := _interrupted(error)) is not None:
            _say_how_to_go_on(trainer)
            reported = SystemExit(status)
        if trainer.world_size > 1:
            _end_without_waiting(reported, first=trainer.is_global_zero)
        if reported is error:
            raise
        raise reported from None
    finally:
        _watch = None


def each_on_its_own() -> None:
    """Stop ending processes together: no process waits for another any more, and the first may finish its work."""
    if _watch is not None:
        _watch.stop()


def _of_another(rank: int, status: int) -> BaseException:
    said = f"{how(rank, status)}{'' if status < 0 else ': see what it wrote above'}"
    if status_of(status) == 2:
        return UserError(said)
    code = status_of(status)
    sys.stderr.write(f"error: {said}\n" if code == 1 else "interrupted\n")
    return SystemExit(code)


def _end_without_waiting(error: BaseException, *, first: bool) -> None:
    """Make this process end without NCCL's clean-up, which would wait for processes that have failed.

    In the first process, loggers have registered functions for its end, which run first; the others have no loggers.
    """
    global _failed_with
    code = error.code if isinstance(error, SystemExit) else 2 if isinstance(error, UserError) else 1
    _failed_with = code if isinstance(code, int) else 0 if code is None else 1
    if not first:
        atexit.unregister(_end_now)
        atexit.register(_end_now)  # the function registered last is called first


def _end_now() -> None:
    if _failed_with is not None:
        flush_everything()
        os._exit(_failed_with)


atexit.register(_end_now)


def _interrupted(error: BaseException) -> int | None:
    if isinstance(error, SIGTERMException):
        return 128 + signal.SIGTERM
    # Lightning cleans up and raises SystemExit
    left = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    return 128 + signal.SIGINT if left or isinstance(error, KeyboardInterrupt) else None


def _say_how_to_go_on(trainer: L.Trainer) -> None:
    if not trainer.is_global_zero:
        return
    folders = [Path(f) for c in trainer.checkpoint_callbacks if (f := getattr(c, "dirpath", None))]
    advice = ": no checkpoint was written yet" if folders else ""
    trained = getattr(getattr(trainer, "state", None), "fn", None) == TrainerFn.TESTING
    for folder in folders:
        for name in ("last.ckpt", "best.ckpt") if trained else ("last.ckpt",):
            if (file := folder / name).exists():
                advice = f": {override('resume', file)} continues from there"
                if trained:
                    advice = (
                        f" after the training: sa2depth.eval with {override('checkpoint', file)} scores it"
                    )
    sys.stderr.write(f"interrupted{advice}\n")


def _failed(processes: list["Popen[bytes]"]) -> tuple[int, int] | None:
    """Rank and status of the first failed process; waits a little for processes that are about to end."""
    deadline = time.monotonic() + _PATIENCE_S
    while processes and time.monotonic() < deadline:
        if failure := first_failure(processes):
            return failure
        if all(process.poll() == 0 for process in processes):
            return None
        time.sleep(0.05)
    return None


class EndAtSigterm(L.Callback):
    """Lets SIGTERM end one of several processes at once; `ending_together` ends the others.

    Lightning's own handler communicates with the other processes at the moment of the signal and mostly waits forever.
    If SLURM will queue the job again, Lightning keeps its handler.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handler; Lightning restores the old one at the end."""
        _take_over(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handler, as in `on_train_start`."""
        _take_over(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the watch that Lightning is cleaning up, which may take a while."""
        if _watch is not None:
            _watch.notice(exception)


def _take_over(trainer: L.Trainer) -> None:
    queued_again = requeued_by_slurm(getattr(trainer.strategy, "cluster_environment", None))
    may = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
    if trainer.world_size > 1 and not queued_again and may:
        signal.signal(signal.SIGTERM, _end)


def _end(signum: int, frame: object) -> None:
    raise SIGTERMException
