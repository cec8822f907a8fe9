"""Which implementation of an operator runs: a registry, and how to override its choice.

Every operator has a pure-torch implementation, which is the oracle for the faster ones. ``auto`` takes the first
implementation that can take the inputs; a name takes that one or says why it cannot. A chosen implementation that
fails raises: nothing falls back after a launch.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch.autograd import forward_ad

from sa2depth.errors import ConfigError, nearest
from sa2depth.ops.trust import why_not_trusted

_log = logging.getLogger(__name__)

NAMES = ("auto", "torch", "cpu", "cuda", "triton", "mamba_ssm")
"""What can be asked for, in ``use_backend`` and in the environment variable ``SA2DEPTH_OPS``."""

ON_REQUEST = frozenset({("selective_scan_2d", "mamba_ssm")})
"""Implementations that ``auto`` leaves alone and a name takes: there to compare with."""

_choice = os.environ.get("SA2DEPTH_OPS", "auto")
_said: set[tuple[str, str]] = set()
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


def choose(
    operator: str,
    implementations: Mapping[str, Callable[..., Any]],
    why_not: Mapping[str, Callable[[], str]],
    device: torch.device | None = None,
) -> Callable[..., Any]:
    """The implementation of one operator for one call.

    Args:
        operator: its name, for messages.
        implementations: by back end, fastest first, ``torch`` among them.
        why_not: for each one but ``torch``, a function that says why it cannot take this call's inputs (empty if
            it can).
        device: of the inputs; if given, ``auto`` takes only what has passed its self-test there.

    Returns:
        One of the implementations.

    Raises:
        ConfigError: the back end that was asked for by name cannot take the inputs.
    """
    asked = backend()
    forward_mode = (
        forward_ad._current_level >= 0
    )  # a dual number has a tangent, which only torch's own operators know
    if asked != "auto" and asked in implementations:
        reason = why_not[asked]() if asked in why_not else ""
        if forward_mode and asked != "torch":
            reason = "it has no derivatives in forward mode"
        if reason:
            raise ConfigError(
                f"{operator}: the back end '{asked}' was asked for, but {reason}; use auto or torch"
            )
        return implementations[asked]
    if asked == "auto" and not forward_mode:
        for name, implementation in implementations.items():
            if (operator, name) in ON_REQUEST or (name == "triton" and _on_cpu(device)):
                continue
            reason = why_not[name]() if name in why_not else ""
            if device is not None and name != "torch" and not reason:
                reason = why_not_trusted(operator, name, device)
                if reason:
                    say_once(operator, reason)
            if not reason:
                return implementation
            if not torch.compiler.is_compiling():
                _log.debug("%s does not run on the back end %s: %s", operator, name, reason)
    return implementations["torch"]


def say_once(operator: str, reason: str) -> None:
    """One line, once in a process, about a fast path that this machine could have but does not."""
    if (operator, reason) not in _said:
        _said.add((operator, reason))
        _log.warning("%s is slower here than it could be: %s", operator, reason)


def _on_cpu(device: torch.device | None) -> bool:
    """Where Triton has an interpreter, to test kernels with, and nothing fast."""
    return device is not None and device.type == "cpu"


def _check(name: str) -> None:
    if name not in NAMES:
        raise ConfigError(
            f"there is no back end '{name}' (use_backend, ops=..., SA2DEPTH_OPS): {nearest(name, NAMES)}"
        )
