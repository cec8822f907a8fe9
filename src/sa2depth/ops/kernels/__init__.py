"""CUDA kernels from source: compiled at first use by NVRTC, kept on disk, launched on PyTorch's current stream."""

from sa2depth.ops.kernels.compiler import CompileError, cache_dir, compile_kernels
from sa2depth.ops.kernels.launcher import Argument, Source, launch, versions, why_unavailable

__all__ = [
    "Argument",
    "CompileError",
    "Source",
    "cache_dir",
    "compile_kernels",
    "launch",
    "versions",
    "why_unavailable",
]
