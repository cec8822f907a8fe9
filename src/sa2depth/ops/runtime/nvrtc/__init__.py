"""CUDA kernels from source: compiled by NVRTC at first use, kept on disk, launched on PyTorch's current stream."""

from sa2depth.ops.runtime.nvrtc.compiler import CompileError, cache_dir, compile_kernels
from sa2depth.ops.runtime.nvrtc.inputs import INDEX_LIMIT, LARGEST_GRID, TYPES, int32, why_not, why_not_on
from sa2depth.ops.runtime.nvrtc.launcher import Argument, Source, launch, versions, why_unavailable

__all__ = [
    "INDEX_LIMIT",
    "LARGEST_GRID",
    "TYPES",
    "Argument",
    "CompileError",
    "Source",
    "cache_dir",
    "compile_kernels",
    "int32",
    "launch",
    "versions",
    "why_not",
    "why_not_on",
    "why_unavailable",
]
