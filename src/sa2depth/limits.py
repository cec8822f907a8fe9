"""Recognise errors that mean a machine has run out of disk, memory, shared memory or open files.

PyTorch, its loader processes and safetensors report such limits as plain `RuntimeError`, so texts are compared.
"""

import errno
import os
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_SHARED_MEMORY = (
    "loader processes pass their images in shared memory (/dev/shm), which is full: a container has 64 MB of it unless "
    "it is started with --shm-size=8g or --ipc=host. Otherwise use fewer processes (data.num_workers=0 needs no shared "
    "memory) or a smaller data.batch_size"
)
_OPEN_FILES = (
    "too many open files: allow more (ulimit -n 4096) or use fewer loader processes (data.num_workers=2)"
)
_KILLED = (
    "a loader process was killed, most likely because the memory of this machine is used up: use fewer of them "
    "(data.num_workers=2) or a smaller data.batch_size"
)
_DEVICE_MEMORY = (
    "the GPU does not have enough memory ({reason}). For training use a smaller data.batch_size, smaller windows "
    "(augment.crop), 'gradient_checkpointing=[encoder,decoder]' or cuda_graph=false; for prediction use --max-side or "
    "--size"
)
_MEMORY = (
    "this machine does not have enough memory ({reason}). For training use a smaller data.batch_size, smaller windows "
    "(augment.crop) or fewer loader processes (data.num_workers); for prediction use --max-side or --size"
)


def told_limit(error: BaseException) -> str | None:
    """Say what the machine ran out of, and what to do; None if an error means something else.

    Args:
        error: any error that ended a command.

    Returns:
        A message for people.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return _no_space(error.filename2 or error.filename, error.strerror)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return _OPEN_FILES
    if type(error).__name__ == "OutOfMemoryError":  # torch's, whose import takes seconds
        return _DEVICE_MEMORY.format(reason=_first_sentences(text))
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "Cannot allocate memory" in text:
        return _MEMORY.format(reason=_first_sentences(text) or "out of memory")
    if isinstance(error, RuntimeError) and (told := _of_loader(text)):
        return told
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return _no_space(None, "No space left on device")
    return None


def _of_loader(text: str) -> str | None:
    """The limit that a `RuntimeError` about loader processes means, raised in them or in the process that waits."""
    if "Too many open files" in text or "items of ancdata" in text:
        return _OPEN_FILES
    if "shared memory" in text or "Bus error" in text:
        return _SHARED_MEMORY
    if "DataLoader worker" in text and "killed by signal: Killed" in text:
        return _KILLED
    return None


def _no_space(file: Any, reason: str | None) -> str:
    named = isinstance(file, str | bytes | os.PathLike)
    where = f"{os.fsdecode(file)} cannot be written" if named else "a file cannot be written"
    return f"{where} ({reason}): free some space, or name a folder on another disk"


def _first_sentences(text: str) -> str:
    """Cut off the traceback of a loader process and the advice that PyTorch adds."""
    last = text.strip().rsplit("Error: ", 1)[-1]
    return " ".join(last.split("See documentation")[0].split())[:300].rstrip(". ")
