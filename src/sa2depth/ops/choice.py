"""Which back end is asked for: by ``SA2DEPTH_OPS``, by ``use_backend``, or by one thread for itself.

Every operator has a pure-torch implementation, which is the oracle for the faster ones; ``dispatch.py`` says what is
made of the choice.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from sa2depth.errors import ConfigError, nearest

NAMES = ("auto", "torch", "cpu", "cuda", "triton", "mamba_ssm")
"""What can be asked for, in ``use_backend`` and in the environment variable ``SA2DEPTH_OPS``."""

_choice = os.environ.get("SA2DEPTH_OPS", "auto")
_of_threads: dict[int, str] = {}
"""By thread: choices that hold there alone."""


class use_backend:  # noqa: N801 - reads like torch.no_grad
    """Choose the implementation of all operators, from now on or inside a ``with`` block.

    ``auto`` is the default. An operator that does not exist in the chosen form runs in its torch form; one that does
    but cannot take its inputs raises ``ConfigError``. Compiled graphs (``torch.compile``) keep what was chosen when
    they were traced until the choice changes.

    Args:
        name: ``auto``, ``torch``, ``cpu``, ``cuda``, ``triton`` or, for the scan, ``mamba_ssm``.

    Raises:
        ConfigError: there is no such back end.
    """

    def __init__(self, name: str) -> None:
        global _choice
        _check(name)
        self._before = _choice
        _choice = name

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _choice
        _choice = self._before


def backend() -> str:
    """The name that is asked for now.

    Raises:
        ConfigError: ``SA2DEPTH_OPS`` names no back end.
    """
    choice = _choice
    if _of_threads:
        choice = _of_threads.get(threading.get_ident(), choice)
    _check(choice)
    return choice


@contextmanager
def backend_of_this_thread(name: str) -> Iterator[None]:
    """The implementation of all operators that this thread calls, whatever `use_backend` says for all."""
    _check(name)
    thread = threading.get_ident()
    before = _of_threads.get(thread)
    _of_threads[thread] = name
    try:
        yield
    finally:
        if before is None:
            del _of_threads[thread]
        else:
            _of_threads[thread] = before


def _check(name: str) -> None:
    if name not in NAMES:
        raise ConfigError(
            f"there is no back end '{name}' (use_backend, ops=..., SA2DEPTH_OPS): {nearest(name, NAMES)}"
        )
