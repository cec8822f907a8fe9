"""The chosen back end: by ``SA2DEPTH_OPS``, by ``use_backend``, or by one thread for itself.

Every operator has a pure-torch implementation, the oracle of the faster ones; ``dispatch.py`` applies the choice.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from sa2depth.errors import ConfigError, nearest

NAMES = ("auto", "torch", "cpu", "cuda", "triton", "mamba_ssm")
"""Valid choices, for ``use_backend`` and the environment variable ``SA2DEPTH_OPS``."""

_choice = os.environ.get("SA2DEPTH_OPS", "auto")
_by_thread: dict[int, str] = {}
"""Choices that hold only in one thread, by its id."""


class use_backend:  # noqa: N801 - reads like torch.no_grad
    """Choose the back end of all operators, from now on or inside a ``with`` block.

    ``auto`` is the default. An operator without the chosen back end runs on torch; one that has it but cannot take
    its inputs there raises ``ConfigError``. Compiled graphs (``torch.compile``) keep the choice with which they were
    traced until it changes.

    Args:
        name: ``auto``, ``torch``, ``cpu``, ``cuda``, ``triton`` or, for the scan, ``mamba_ssm``.

    Raises:
        ConfigError: if there is no such back end.
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
    """The name of the present choice.

    Raises:
        ConfigError: if ``SA2DEPTH_OPS`` names no back end.
    """
    choice = _choice
    if _by_thread:
        choice = _by_thread.get(threading.get_ident(), choice)
    _check(choice)
    return choice


@contextmanager
def backend_of_this_thread(name: str) -> Iterator[None]:
    """Choose the back end of all operators that this thread calls, regardless of `use_backend`."""
    _check(name)
    thread = threading.get_ident()
    before = _by_thread.get(thread)
    _by_thread[thread] = name
    try:
        yield
    finally:
        if before is None:
            del _by_thread[thread]
        else:
            _by_thread[thread] = before


def _check(name: str) -> None:
    if name not in NAMES:
        raise ConfigError(
            f"there is no back end '{name}' (use_backend, ops=..., SA2DEPTH_OPS): {nearest(name, NAMES)}"
        )
