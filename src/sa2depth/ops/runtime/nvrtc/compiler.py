"""Compiles files of ``csrc/`` without a CUDA toolkit, by NVRTC through ``cuda.core``, and caches the results on disk.

Processes and machines may share the cache: a file's name is the hash of everything that its contents depend on, files
are written atomically, and each has a checksum.
"""

import functools
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from sa2depth.atomic import atomic_path
from sa2depth.resources import user_cache
from sa2depth.stages import stage

_log = logging.getLogger(__name__)

_OPTIONS = {"std": "c++17", "lineinfo": True}
_CHECKSUM_BYTES = hashlib.sha256().digest_size


class CompileError(RuntimeError):
    """A kernel that the compiler refused; the message holds the compiler's log."""


def cache_dir() -> Path:
    """Folder of compiled kernels: ``$SA2DEPTH_CACHE``, else ``sa2depth/kernels`` in the user's cache folder.

    A user without a home folder gets a temporary folder for this process.
    """
    if os.environ.get("SA2DEPTH_CACHE"):
        return user_cache()
    try:
        return user_cache() / "kernels"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(_folder_of_this_process().name)


@functools.cache
def _folder_of_this_process() -> "tempfile.TemporaryDirectory[str]":
    _log.warning(
        "this user has no home folder: every process compiles kernels again; set SA2DEPTH_CACHE to a folder"
    )
    return tempfile.TemporaryDirectory(prefix="sa2depth-")


def compile_kernels(source: Path, architecture: str, macros: Mapping[str, int]) -> bytes:
    """Machine code of one source file, from the cache if it is there.

    If the cache folder cannot be written, every process compiles again, and a warning says so.

    Args:
        source: a ``.cu`` file; it may include files of its own folder and of the one above.
        architecture: the device's architecture, such as ``sm_90``.
        macros: numbers to define for the preprocessor.

    Returns:
        The contents of a cubin.

    Raises:
        CompileError: if the source does not compile; the message holds the compiler's log.
        ImportError: if ``cuda.core`` or NVRTC is not installed.
    """
    digest = _digest(source, architecture, macros)
    path = cache_dir() / f"{source.stem}-{architecture}-{digest[:32]}.cubin"
    code = _read(path)
    if code is None:
        with stage("compiling CUDA kernels"):
            code = _compile(source, architecture, macros)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(hashlib.sha256(code).digest() + code)
        except OSError as error:
            _log.warning(
                "compiled kernels cannot be saved (%s): every process compiles again; set SA2DEPTH_CACHE to a "
                "writable folder",
                error,
            )
    return code


def _digest(source: Path, architecture: str, macros: Mapping[str, int]) -> str:
    from cuda.bindings import nvrtc

    parts: list[object] = [
        architecture,
        sorted(macros.items()),
        sorted(_OPTIONS.items()),
        nvrtc.nvrtcVersion()[1:],
    ]
    parts.append(source.name)
    for file in (*_sources(source.parent), *_sources(source.parent.parent)):
        parts += [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _sources(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".cu", ".cuh", ".h"))


def _read(path: Path) -> bytes | None:
    try:
        contents = path.read_bytes()
    except OSError:
        return None
    checksum, code = contents[:_CHECKSUM_BYTES], contents[_CHECKSUM_BYTES:]
    if hashlib.sha256(code).digest() == checksum:
        return code
    _log.warning("%s is damaged: compiling again", path)
    return None


def _compile(source: Path, architecture: str, macros: Mapping[str, int]) -> bytes:
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        name=source.name,
        arch=architecture,
        include_path=[str(source.parent)],
        define_macro=[(name, str(value)) for name, value in macros.items()] or None,
        ptxas_options=["-v"],
        **_OPTIONS,
    )
    report = io.StringIO()
    try:
        compiled = Program(source.read_text(encoding="utf-8"), "c++", options).compile("cubin", logs=report)
    except Exception as error:  # cuda.core's error class has no public name
        raise CompileError(f"{source} does not compile for {architecture}:\n{error}") from error
    _log.debug("compiled %s for %s with %s\n%s", source, architecture, dict(macros), report.getvalue())
    return bytes(compiled.code)
