"""Builds the CPU library from ``csrc/cpu``; at installation ``hatch_build.py`` loads this file by its path.

It uses only the standard library, because neither PyTorch nor this package is installed at that time.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY = "libsa2depth_cpu.so"
"""File name of the library, next to this file; it is the same on all systems, because ctypes does not need a suffix."""

SWITCH = "SA2DEPTH_BUILD_CPU"
"""Environment variable; the value ``0`` installs without the library."""

PATHS = ("portable", "avx2", "avx512")
"""Code paths in the order of the library's numbers; outside of x86-64 there is only the portable one."""

# -ffp-contract allows fused multiply-adds under ISO C++, too. There is no fast-math, because roundings in the
# polynomials are deliberate, and no -fopenmp, because csrc/cpu/parallel.cpp uses the pool of PyTorch's runtime.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
          "-ffp-contract=fast", "-Wno-psabi", "-pthread")  # fmt: skip
_PATH_FLAGS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
}
_TIMEOUT_S = 300


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which and why."""


def sources_version(sources: Path) -> str:
    """Hash of all sources; it is stored in the library, so that an outdated one is recognised.

    Args:
        sources: the folder ``csrc/cpu``.
    """
    digest = hashlib.sha256()
    for file in sorted(sources.iterdir()):
        if file.suffix in {".h", ".cpp"}:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def build(sources: Path, target: Path) -> Path:
    """Compile the library.

    Args:
        sources: the folder ``csrc/cpu``.
        target: existing folder for the library; the file is replaced atomically.

    Returns:
        Path of the library.

    Raises:
        BuildError: if there is no compiler (``$CXX``, else c++, g++ or clang++), or it fails.
    """
    compiler = _compiler()
    x86 = platform.machine().lower() in {"x86_64", "amd64"} and sys.maxsize > 2**32
    with tempfile.TemporaryDirectory(prefix="sa2depth-build-") as folder:
        objects = []
        for path in PATHS if x86 else PATHS[:1]:
            # These files must not instantiate templates of the standard library: see csrc/cpu/parallel.cpp.
            own = (*_PATH_FLAGS[path], "-fno-exceptions", f"-DSA2_PATH={path}")
            objects.append(Path(folder) / f"{path}.o")
            _run([*compiler, *_FLAGS, *own, "-c", sources / "kernels.cpp", "-o", objects[-1]])
        macros = [f'-DSA2_SOURCES="{sources_version(sources)}"', *(["-DSA2_X86"] if x86 else [])]
        for name in ("library", "parallel"):
            objects.append(Path(folder) / f"{name}.o")
            _run([*compiler, *_FLAGS, *macros, "-c", sources / f"{name}.cpp", "-o", objects[-1]])
        linked = Path(folder) / LIBRARY
        _run([*compiler, *_FLAGS, "-shared", *objects, "-o", linked])
        # Copied next to its place first: renaming is atomic there, and a running program keeps the old file.
        fresh = target / f".{LIBRARY}.{os.getpid()}"
        shutil.copyfile(linked, fresh)
        fresh.chmod(0o755)
        fresh.replace(target / LIBRARY)
    return target / LIBRARY


def _compiler() -> list[str]:
    asked = shlex.split(os.environ.get("CXX", ""))
    for candidate in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError(
        f"there is no C++ compiler ({' '.join(asked) or 'c++, g++, clang++'}): install one or set CXX"
    )


def _run(command: list[str | Path]) -> None:
    try:
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run: {error}") from None
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or [
            "no message on stderr"
        ]
        raise BuildError(f"{command[0]} failed: {lines[0][:300]}")
