"""The processes of one training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import lightning as L
from torch.distributed import DistError

from sa2depth.errors import UserError

_PATIENCE_S = 2.0


@contextmanager
def ending_together(trainer: L.Trainer) -> Iterator[None]:
    """Where the process that has started the others fails, it ends them: over NCCL they would wait for it in vain.

    The reverse is Lightning's work, which ends everything a few seconds after a process that it has started. Over gloo
    this process hears of it earlier, by a lost connection.

    Raises:
        UserError: another process failed first, and has said why.
    """
    try:
        yield
    except BaseException as error:
        others: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
        # gloo's lost connections have no type of their own
        lost = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        failed = _failed(others) if lost else None
        for process in others:
            process.kill()
        if failed is not None:
            raise UserError(f"another process of the training {failed}: see what it wrote above") from None
        raise


def _failed(processes: list["Popen[bytes]"]) -> str | None:
    """How the first of some processes failed, which may be about to end."""
    deadline = time.monotonic() + _PATIENCE_S
    while processes and time.monotonic() < deadline:
        for code in (process.poll() for process in processes):
            if code:
                return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        time.sleep(0.05)
    return None
