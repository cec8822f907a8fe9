"""Triton, for GPUs without our CUDA kernels: checks that it can run here, and launches on a chosen device."""

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from sa2depth.ops.runtime.notices import say_once

_OLDEST = (7, 0)  # compute capability that Triton supports
_OLDEST_BFLOAT16 = (8, 0)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_unavailable(device: torch.device) -> str:
    """The reason why Triton cannot compile for and run on a device; empty if it can."""
    if device.type != "cuda":
        return f"{device} is not a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch for CUDA)"
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        return "Triton needs a C compiler, and none was found (install gcc)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Triton needs Python's C headers, and none were found (install python3-dev)"
    if torch.cuda.get_device_capability(device) < _OLDEST:
        return f"{torch.cuda.get_device_name(device)} is too old for Triton"
    if folder := _unwritable_cache():
        return f"Triton cannot write to {folder} (set TRITON_CACHE_DIR to a writable folder)"
    return ""


def _unwritable_cache() -> str:
    """The existing part of the path of Triton's cache if it cannot be written; empty if it can."""
    if chosen := os.environ.get("TRITON_CACHE_DIR"):
        folder = Path(chosen)
    elif home := os.environ.get("TRITON_HOME"):
        folder = Path(home, ".triton")
    else:
        try:
            folder = Path.home() / ".triton"
        except RuntimeError:  # without a home folder, Triton creates a folder of this name in the current one
            folder = Path("~", ".triton")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return "" if there.is_dir() and os.access(there, os.W_OK) else str(there)


def why_not(operator: str, **tensors: Tensor) -> str:
    """The reason why Triton's kernels cannot take these tensors; empty if they can.

    On the CPU they run slowly in Triton's interpreter (``TRITON_INTERPRET=1``), which serves for tests.

    Args:
        operator: the operator's name, for the warning if the machine lacks something.
        **tensors: the tensors, by their names in a message.
    """
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.device.type not in ("cuda", "cpu") or tensor.device.type != device.type:
            return f"the {name} is on {tensor.device}"
        if tensor.dtype not in _DTYPES:
            return f"the {name} is {tensor.dtype}"
    halves = any(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    return _why_not_on(operator, device.type, device.index, halves)


@torch.compiler.assume_constant_result
def _why_not_on(operator: str, kind: str, index: int | None, bfloat16: bool) -> str:
    device = torch.device(kind) if index is None else torch.device(kind, index)
    if kind == "cpu":
        return "" if interpreted() else f"the input is on {device}"
    unavailable, no_bfloat16 = _lacks(device)
    if unavailable:
        say_once(operator, unavailable)
    return unavailable or (no_bfloat16 if bfloat16 else "")


@functools.cache  # because every call of an operator needs it
def _lacks(device: torch.device) -> tuple[str, str]:
    """The reasons why Triton cannot run on a GPU at all, and why it cannot with bfloat16."""
    if reason := why_unavailable(device):
        return reason, reason
    old = torch.cuda.get_device_capability(device) < _OLDEST_BFLOAT16
    return "", f"{torch.cuda.get_device_name(device)} has no bfloat16" if old else ""


def interpreted() -> bool:
    """True if kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which Triton launches on this device, on PyTorch's current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@functools.cache
def float32_precision(device: torch.device) -> str:
    """The ``input_precision`` with which ``tl.dot`` has the accuracy of float32."""
    fast = device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) >= (8, 0)
    return "tf32x3" if fast else "ieee"


def versions() -> tuple[str, int]:
    """Triton's version and the newest CUDA version that the driver can run (0 without a CUDA driver)."""
    read = getattr(torch._C, "_cuda_getDriverVersion", None)  # a build without CUDA lacks it
    driver = int(read()) if read and torch.version.cuda and torch.cuda.is_available() else 0
    return importlib.metadata.version("triton"), driver


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``, as Triton's ranges need."""
    return 1 << (number - 1).bit_length()


def sources(module: str) -> tuple[Path, ...]:
    """Files on which the results of an operator in Triton depend; ``module`` is one of its own files."""
    return (Path(__file__), *sorted(Path(module).parent.glob("*.py")))
