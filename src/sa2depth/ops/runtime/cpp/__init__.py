"""Operators on the CPU in C++: forward and backward in float32; no compiler is needed at run time."""

from sa2depth.ops.runtime.cpp.build import BuildError
from sa2depth.ops.runtime.cpp.inputs import why_not
from sa2depth.ops.runtime.cpp.library import (
    call,
    library_file,
    path,
    paths,
    pool,
    rebuild,
    why_unavailable,
)

__all__ = [
    "BuildError",
    "call",
    "library_file",
    "path",
    "paths",
    "pool",
    "rebuild",
    "why_not",
    "why_unavailable",
]
