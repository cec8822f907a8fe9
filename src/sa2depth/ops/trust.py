"""A fast operator is trusted once it was right on this machine: a self-test at first use, remembered on disk.

What is remembered belongs to the machine, the driver's and PyTorch's version and the source of the operator; anything
new is tested anew. A back end that is wrong is left alone by ``auto``, and one line says so.
"""

import functools
import hashlib
import logging
import platform

import torch

from sa2depth.atomic import atomic_path
from sa2depth.ops.kernels import cache_dir
from sa2depth.resources import csrc_dir

_log = logging.getLogger(__name__)

_testing: list[str] = []


def why_not_trusted(operator: str, backend: str, device: torch.device) -> str:
    """Why a back end's numbers cannot be relied on; empty if they can.

    The first question on a machine runs the operator, forward and backward, on small inputs (under a second, compilers
    of kernels apart), and compares with float64.

    Args:
        operator: its name in `sa2depth.ops`.
        backend: ``cpu``, ``cuda`` ...
        device: where it would run.

    Returns:
        A sentence, or nothing.
    """
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return _tested(operator, backend, device.type, index)


@torch.compiler.assume_constant_result
def _tested(operator: str, backend: str, kind: str, index: int | None) -> str:
    if _testing:  # this very call is part of a self-test
        return ""
    return _verdict(operator, backend, kind, index)


@functools.cache
def _verdict(operator: str, backend: str, kind: str, index: int | None) -> str:
    from sa2depth.ops.selftest import TOLERANCE, check

    device = torch.device(kind) if index is None else torch.device(kind, index)
    note = cache_dir() / f"selftest-{operator}-{backend}-{_circumstances(operator, backend, device)}.txt"
    if note.is_file():
        return note.read_text(encoding="utf-8")
    _testing.append(operator)
    try:
        # gradients even where the call itself has none, outside of any graph that is being captured or compiled
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False):
            result = check(operator, backend, device)
    finally:
        _testing.pop()
    verdict = ""
    if result.error is not None and not result.passed:
        verdict = (
            f"its self-test on {device} is wrong by {result.error:.1e} (allowed {TOLERANCE:g}); "
            "please report it with the output of `sa2depth doctor`"
        )
    if result.error is not None:
        _remember(note, verdict)
    return verdict


def _remember(note: "object", verdict: str) -> None:
    try:
        with atomic_path(note) as temporary:  # type: ignore[arg-type]
            temporary.write_text(verdict, encoding="utf-8")
    except OSError as error:
        _log.debug("the self-test cannot be remembered: %s", error)


def _circumstances(operator: str, backend: str, device: torch.device) -> str:
    parts: list[object] = [operator, backend, torch.__version__, platform.machine(), platform.processor()]
    if device.type == "cuda":
        parts += [torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)]
    folder = csrc_dir() / ("cpu" if backend == "cpu" else _FOLDERS.get(operator, operator))
    shared = [] if backend == "cpu" else csrc_dir().glob("*.cuh")
    for file in sorted((*folder.glob("*"), *shared)):
        parts.append((file.name, hashlib.sha256(file.read_bytes()).hexdigest()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_FOLDERS = {"selective_scan_2d": "selective_scan"}
"""Folders in ``csrc/`` that are not called as their operator."""
