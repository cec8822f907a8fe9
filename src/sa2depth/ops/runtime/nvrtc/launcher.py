"""Loading and launching CUDA kernels."""

import ctypes
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sa2depth.ops.runtime.nvrtc.compiler import compile_kernels
from sa2depth.resources import csrc_dir

if TYPE_CHECKING:
    from cuda.core import Kernel

Argument = Tensor | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_float | None
"""An argument of a kernel: a tensor (its address), None (a null pointer), or a number of the right size."""

_OLDEST_CAPABILITY = (8, 0)
_LARGE_SHARED_BYTES = 48 * 1024  # more must be requested explicitly

_lock = threading.Lock()
_thread = threading.local()
_allowed: dict[tuple["Source", str, int], int] = {}
"""Requested dynamic shared memory of kernels that need more than the default limit, by kernel and device."""


@dataclass(frozen=True)
class Source:
    """A file in ``csrc/`` and the numbers that it is compiled with.

    Args:
        path: below ``csrc/``, such as ``selective_scan/forward.cu``.
        macros: names and values.
    """

    path: str
    macros: tuple[tuple[str, int], ...] = ()


@functools.cache
def why_unavailable(device: torch.device) -> str:
    """The reason why kernels cannot be compiled for and run on a device; empty if they can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"{device} is not a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_CAPABILITY:
        return f"{device} has compute capability {capability[0]}.{capability[1]}, but the kernels need 8.0"
    try:
        import cuda.core
        from cuda.bindings import nvrtc

        if not hasattr(cuda.core, "Program"):
            return "this version of cuda.core is too old (pip install -U cuda-core)"
        status, architectures = nvrtc.nvrtcGetSupportedArchs()[:2]
        (compiler, minor), driver = versions()
    except (ImportError, RuntimeError, OSError) as error:
        return f"there is no CUDA compiler ({error}): pip install cuda-core[cu{torch.version.cuda.partition('.')[0]}]"
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        return f"NVRTC does not work ({status})"
    if 10 * capability[0] + capability[1] not in architectures:
        return f"NVRTC {compiler}.{minor} does not know {device}'s architecture (install a newer cuda-core)"
    if compiler > driver // 1000:
        return (
            f"NVRTC {compiler}.{minor} is newer than the driver (pip install cuda-core[cu{driver // 1000}])"
        )
    return ""


def versions() -> tuple[tuple[int, int], int]:
    """NVRTC's version, and the newest CUDA version that the driver can run (12080 for 12.8).

    Raises:
        ImportError: if ``cuda.bindings`` is not installed.
        RuntimeError: if NVRTC or the driver does not work.
    """
    from cuda.bindings import driver, nvrtc

    status, major, minor = nvrtc.nvrtcVersion()
    answer, newest = driver.cuDriverGetVersion()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS or answer != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"NVRTC returned {status}, the driver {answer}")
    return (major, minor), newest


def launch(
    source: Source,
    kernel: str,
    arguments: Sequence[Argument],
    *,
    grid: tuple[int, int, int],
    threads: int,
    device: torch.device,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel on PyTorch's current stream of a device; the first call compiles and loads it.

    Args:
        source: the kernel's file.
        kernel: the kernel's ``extern "C"`` name.
        arguments: in the kernel's order; tensors are on ``device`` and contiguous.
        grid: blocks along x, y and z.
        threads: threads of a block, along x.
        device: the device to run on.
        shared_bytes: dynamic shared memory of a block.

    Raises:
        CompileError: if the kernel does not compile.
        ValueError: if a tensor is on another device or not contiguous.
        RuntimeError: if the driver refuses the launch.
    """
    from cuda.core import launch as launch_kernel

    values = [_value(argument, device) for argument in arguments]
    with torch.cuda.device(device):
        _enter_context(device.index)
        loaded = _load(source, kernel, device.index, shared_bytes)
        stream = _stream(torch.cuda.current_stream(device).cuda_stream)
        launch_kernel(stream, _config(grid, threads, shared_bytes), loaded, *values)


def _enter_context(index: int) -> None:
    """Make the device's context current in a thread that has none yet.

    PyTorch leaves that to the first call of the CUDA runtime, which may come after a launch in autograd's threads.
    """
    if not getattr(_thread, "has_context", False):
        from cuda.bindings import driver
        from cuda.core import Device

        status, context = driver.cuCtxGetCurrent()
        if status != driver.CUresult.CUDA_SUCCESS or not int(context):
            Device(index).set_current()
        _thread.has_context = True


def _value(argument: Argument, device: torch.device) -> Any:
    if argument is None:
        return 0
    if not isinstance(argument, Tensor):
        return argument
    if argument.device != device or not argument.is_contiguous():
        raise ValueError(
            f"a kernel on {device} takes contiguous tensors there, not one on {argument.device} with strides "
            f"{argument.stride()}"
        )
    return argument.data_ptr()


@functools.lru_cache(maxsize=256)
def _config(grid: tuple[int, int, int], threads: int, shared_bytes: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=threads, shmem_size=shared_bytes)


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle else LEGACY_DEFAULT_STREAM


def _load(source: Source, kernel: str, device: int, shared_bytes: int) -> "Kernel":
    with _lock:  # so that two threads do not compile the same file
        loaded = _prepared(source, kernel, device)
        if shared_bytes > _allowed.get((source, kernel, device), _LARGE_SHARED_BYTES):
            _allow(loaded, kernel, device, shared_bytes)
            _allowed[source, kernel, device] = shared_bytes
        return loaded


@functools.cache
def _prepared(source: Source, kernel: str, device: int) -> "Kernel":
    major, minor = torch.cuda.get_device_capability(device)
    return _library(source, f"sm_{major}{minor}").get_kernel(kernel)


def _allow(loaded: "Kernel", kernel: str, device: int, shared_bytes: int) -> None:
    """Raise the limit of a kernel's dynamic shared memory; callers never lower it."""
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, loaded.handle, driver.CUdevice(device))
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{kernel} cannot have {shared_bytes} bytes of shared memory: {status}")


@functools.cache
def _library(source: Source, architecture: str) -> Any:
    from cuda.core import ObjectCode

    path = csrc_dir() / source.path
    return ObjectCode.from_cubin(compile_kernels(path, architecture, dict(source.macros)), name=path.name)
