"""A fast back end is trusted after a self-test at its first use on this machine; the result is kept on disk.

A result is valid for one device, the versions of PyTorch, driver and compiler, the operator's source and, on a CPU, the
code path; if any of these changes, the test runs again. ``auto`` skips a back end that fails, with one warning.
"""

import hashlib
import logging
import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from sa2depth.atomic import atomic_path
from sa2depth.ops.registry import OPERATORS
from sa2depth.ops.runtime import cpp, nvrtc, triton
from sa2depth.ops.selftest import TOLERANCE, Check, check
from sa2depth.stages import stage

_log = logging.getLogger(__name__)

_lock = threading.Lock()


def why_not_trusted(operator: str, backend: str, device: torch.device) -> str:
    """The reason why a back end's results cannot be trusted; empty if they can.

    The first call on a machine runs the operator, forward and backward, on small inputs (under a second, without the
    compilation of kernels), and compares the results with float64.

    Args:
        operator: the operator's name in `sa2depth.ops`.
        backend: the back end's name, such as ``cpu`` or ``cuda``.
        device: the device that it would run on.

    Returns:
        The reason, or an empty string.
    """
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return _tested(operator, backend, device.type, index)


@torch.compiler.assume_constant_result
def _tested(operator: str, backend: str, kind: str, index: int | None) -> str:
    if (known := _known.get((operator, backend, kind, index))) is not None:
        return known
    with _lock:
        return _verdict(operator, backend, kind, index)


_known: dict[tuple[str, str, str, int | None], str] = {}


def _verdict(operator: str, backend: str, kind: str, index: int | None) -> str:
    key = operator, backend, kind, index
    if key not in _known:
        device = torch.device(kind) if index is None else torch.device(kind, index)
        verdict = _read(_note(operator, backend, device))
        if verdict is None:
            # A separate thread has none of the caller's modes: inference, autocast, export, vmap, fake tensors ...
            with (
                stage(f"testing {operator} ({backend}) once on this machine"),
                ThreadPoolExecutor(1) as thread,
            ):
                result = thread.submit(check, operator, backend, device)
            if backend == "triton" and (error := result.exception()):
                # Triton brings its own compilers and drivers: if they fail here, the kernels are not at fault.
                verdict = f"Triton fails on {device} ({type(error).__name__}: {error})"
            else:
                verdict = remember(result.result(), device)
        _known[key] = verdict
    return _known[key]


def remember(result: Check, device: torch.device) -> str:
    """Keep the result of a self-test for this and later processes on this machine, unless it could not run.

    Args:
        result: the result of `sa2depth.ops.selftest.check`.
        device: the device that it ran on.

    Returns:
        The reason why the back end cannot be trusted; empty if it can.
    """
    verdict = ""
    if result.error is None:
        return verdict
    if not result.passed:
        verdict = (
            f"its self-test on {device} is wrong by {result.error:.1e} (allowed {TOLERANCE:g}); "
            "please report it with the output of `sa2depth doctor`"
        )
    try:
        with atomic_path(_note(result.operator, result.backend, device)) as temporary:
            temporary.write_text(verdict, encoding="utf-8")
    except OSError as error:
        _log.debug("the self-test's result cannot be saved: %s", error)
    return verdict


def _note(operator: str, backend: str, device: torch.device) -> Path:
    return (
        nvrtc.cache_dir() / f"selftest-{operator}-{backend}-{_circumstances(operator, backend, device)}.txt"
    )


def _read(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _circumstances(operator: str, backend: str, device: torch.device) -> str:
    parts: list[object] = [operator, backend, torch.__version__, platform.machine()]
    if device.type == "cuda":
        parts += [torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)]
        parts += triton.versions() if backend == "triton" else nvrtc.versions()
    files = list(OPERATORS[operator].backend(backend).sources)
    if backend == "cpu":
        parts.append(cpp.path())
        files.append(cpp.library_file())
    parts += [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in sorted(files)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
