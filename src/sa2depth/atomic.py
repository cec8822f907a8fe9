"""Files appear whole or not at all.

A file is written beside its destination under a temporary name and renamed over it: a run that is killed
half-way leaves the old file, or none, never half of one.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the destination's folder, renamed onto the destination when the block ends well.

    Missing parent folders are made. The temporary name keeps the destination's suffix, because many writers
    choose their format by it.

    Args:
        destination: The file to write; an existing one is replaced.

    Yields:
        The path to write to.

    Raises:
        OSError: The folder cannot be made or written.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:40]}-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner may read; give what an ordinary open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
