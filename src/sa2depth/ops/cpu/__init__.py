"""Operators on the CPU in C++: forward and backward in float32, without a compiler at run time."""

from sa2depth.ops.cpu.library import BuildError, library_file, path, paths, pool, rebuild, why_unavailable

__all__ = ["BuildError", "library_file", "path", "paths", "pool", "rebuild", "why_unavailable"]
