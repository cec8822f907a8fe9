"""Files appear whole or not at all.

A file is written beside its destination under a temporary name and then renamed, so that a killed run leaves the old
file or none, never half of one.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = r"\.(?P<stem>.+)-[0-9a-f]{16}(?P<suffix>\.[^.]*)?"
"""Pattern of the temporary names, which a killed run leaves behind."""


@contextlib.contextmanager
def atomic_path(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the destination's folder, renamed onto the destination when the block ends well.

    Missing parent folders are made. The temporary name keeps the destination's suffix, because many writers
    choose their format by it. The file gets the permissions of an ordinary new file, even if a library replaces the
    temporary by a private one, as safetensors does.

    Args:
        destination: The file to write; an existing one is replaced.

    Yields:
        The path to write to.

    Raises:
        OSError: The folder cannot be made or written.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(8)}{target.suffix}")
    # tempfile is not used: only the owner can read its files, and reading the umask to correct that would change it for
    # a moment, for all threads.
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    made = os.fstat(descriptor)
    os.close(descriptor)
    try:
        yield temporary
        if temporary.stat().st_ino != made.st_ino:
            temporary.chmod(stat.S_IMODE(made.st_mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def keep_numbered(path: Path) -> Path | None:
    """Give a file or folder a name with the next free number, ``metrics_1.csv``.

    Returns:
        Its new path; None if it does not exist.

    Raises:
        OSError: Its folder cannot be written.
    """
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}_{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept
