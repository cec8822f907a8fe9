"""Loading the CPU library and calling its functions.

It is a plain C library built at installation (``csrc/cpu``, ``build.py``) and called through ctypes. It runs AVX-512,
AVX2 or portable code, depending on the processor; ``SA2DEPTH_CPU_PATH`` forces one of them.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa2depth.errors import ConfigError, nearest
from sa2depth.ops.runtime.cpp.build import LIBRARY, PATHS, build, sources_version
from sa2depth.resources import csrc_dir

PATH_VARIABLE = "SA2DEPTH_CPU_PATH"
"""Environment variable that forces a code path: ``portable``, ``avx2`` or ``avx512``."""

_FAILURES = {1: "its code path does not exist on this machine", 2: "out of memory"}
_POOL = ("GOMP_parallel", "omp_get_thread_num")
_BUILD_AGAIN = "run `pip install` again on a machine with a C++ compiler, or call sa2depth.ops.cpu.rebuild()"


class Dcnv3Shape(ctypes.Structure):
    """The struct of this name in ``csrc/cpu/kernels.h``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("groups", "group_channels", "kernel", "stride")),
        *((name, ctypes.c_int64) for name in ("padding", "dilation", "remove_center", "softmax", "row")),
        ("offset_scale", ctypes.c_float),
    ]


class AttentionShape(ctypes.Structure):
    """The struct of this name in ``csrc/cpu/kernels.h``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "dim")),
        ("bounds", ctypes.c_int64 * 4),
        ("scale", ctypes.c_float),
    ]


class AttentionStrides(ctypes.Structure):
    """The struct of this name in ``csrc/cpu/kernels.h``."""

    _fields_ = [(name, ctypes.c_int64) for name in ("group", "batch", "head", "query", "channel")]


class ScanShape(ctypes.Structure):
    """The struct of this name in ``csrc/cpu/kernels.h``."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "rank", "states", "chunk")
    ]


class GatedConvShape(ctypes.Structure):
    """The struct of this name in ``csrc/cpu/kernels.h``."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "channels", "height", "width")]


def library_file() -> Path:
    """Path of the library, if it was built."""
    return Path(__file__).with_name(LIBRARY)


def why_unavailable() -> str:
    """The reason why this machine has no CPU library; empty if it has one."""
    return _load()[1]


def paths() -> list[str]:
    """Code paths that this machine can run, slowest first; empty without the library."""
    library, _ = _load()
    offered = library.sa2depth_cpu_paths() if library else 0
    return [name for bit, name in enumerate(PATHS) if offered >> bit & 1]


def path() -> str:
    """The code path in use.

    Raises:
        ConfigError: if ``SA2DEPTH_CPU_PATH`` names a code path that this machine does not have.
    """
    known = paths()
    asked = os.environ.get(PATH_VARIABLE, "")
    if asked and asked not in known:
        raise ConfigError(f"{PATH_VARIABLE}={asked}: {nearest(asked, known)}")
    return asked or known[-1]


def pool() -> str:
    """The threads that the library computes with, in words."""
    return "threads of its own" if _pool() is None else "PyTorch's threads"


def call(function: str, *arguments: object) -> None:
    """Run one of the library's functions on PyTorch's number of threads.

    Args:
        function: the function's name without the prefix ``sa2depth_``.
        arguments: contiguous (or strided, if the function takes strides) float32 tensors on the CPU, structures by
            value, None for a null pointer.

    Raises:
        MemoryError: if the library gets no memory.
        RuntimeError: if there is no library, or the call fails.
    """
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"the CPU library cannot be used: {reason}")
    converted = [_convert(argument) for argument in arguments]
    number = ctypes.c_int(PATHS.index(path()))
    status = getattr(library, f"sa2depth_{function}")(number, *converted, torch.get_num_threads())
    if status:
        message = f"sa2depth_{function}: {_FAILURES.get(status, status)}"
        raise MemoryError(message) if status == 2 else RuntimeError(message)


def rebuild() -> Path:
    """Build the library in place, for an installation that lacks it; the next start of Python will use it.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    return build(csrc_dir() / "cpu", Path(__file__).parent)


def _convert(argument: object) -> Any:
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, Tensor):
        if argument.dtype != torch.float32 or argument.device.type != "cpu":
            raise RuntimeError(
                f"the CPU library takes float32 tensors on the CPU, not {argument.dtype} on {argument.device}"
            )
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.byref(argument)  # type: ignore[arg-type]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    file = library_file()
    if not file.is_file():
        return None, f"SA2Depth was installed without the CPU library; {_BUILD_AGAIN}"
    try:
        library = ctypes.CDLL(str(file))
        library.sa2depth_cpu_version.restype = ctypes.c_char_p
        built_from = library.sa2depth_cpu_version().decode()
        sources = sources_version(csrc_dir() / "cpu")
    except (OSError, AttributeError) as error:
        return None, f"the CPU library cannot be loaded ({error}); {_BUILD_AGAIN}"
    if built_from != sources:
        return None, f"the CPU library was built from another version of csrc/cpu; {_BUILD_AGAIN}"
    if (functions := _pool()) is not None:
        library.sa2depth_cpu_use_pool(*functions)
    return library, ""


def _pool() -> tuple[ctypes.c_void_p, ctypes.c_void_p] | None:
    """The functions of PyTorch's OpenMP runtime that ``csrc/cpu/parallel.cpp`` needs; None if it has no such runtime.

    A lookup in PyTorch's own library includes its dependencies, so it finds the runtime that PyTorch uses, whatever
    its file name, even if other runtimes are loaded.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            loaded = ctypes.CDLL(str(folder / name))
            functions = [ctypes.cast(loaded[symbol], ctypes.c_void_p) for symbol in _POOL]
        except (OSError, AttributeError):
            continue
        return functions[0], functions[1]
    return None
