"""Members of a source: files with a name, a size and their bytes, in an archive or a folder."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from sa2depth.errors import DataError

Accept = Callable[[str], str | None]
"""Maps the name of a member to its path below the root; None: it does not belong to this data set."""

_DRIVE_LETTER = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One file of a source that belongs to the data set.

    Attributes:
        name: its name, with ``/`` between folders.
        target: path below the root where it belongs.
        size: size in bytes; an estimate for a generated file, see ``mark``.
        crc: CRC-32 of the bytes, if the source knows it.
        mark: bytes in the first kilobyte of a generated file, whose exact size is unknown; None: a copied file.
        handle: key with which the source finds it again.
    """

    name: str
    target: str
    size: int
    crc: int | None = None
    mark: bytes | None = None
    handle: Any = field(default=None, compare=False, repr=False)


class Reader(Protocol):
    """An opened source, used by one thread."""

    def open(self, member: Member) -> BinaryIO:
        """Open the member for reading."""


class Source(Protocol):
    """An archive, a folder, or a file from which others are generated.

    Attributes:
        path: its path.
        kind: its kind in messages, e.g. ``zip archive``.
        linked: True if members are separate files, to which links can be made.
        sequential: True if members are read fast only in their order, by one reader.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102 - described above, as are the next three
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def linked(self) -> bool: ...  # noqa: D102
    @property
    def sequential(self) -> bool: ...  # noqa: D102

    def find(self, accept: Accept) -> Iterator[Member]:
        """Members that belong to the data set, in the order in which they are best read.

        Raises:
            DataError: the source is damaged or unsafe; the message names it.
        """

    def open(self) -> AbstractContextManager[Reader]:
        """Open the source for one thread."""


def safe_name(name: str, archive: Path) -> str:
    """A member's name with ``/`` between folders.

    Raises:
        DataError: the name leads out of the folder in which it would be unpacked.
    """
    plain = name.replace("\\", "/")  # some Windows programs pack with backslashes
    parts = PurePosixPath(plain).parts
    if plain.startswith("/") or ".." in parts or _DRIVE_LETTER.match(plain) or "\0" in plain:
        raise DataError(
            f"{archive}: its member '{name}' would be unpacked outside the folder. The data sets' archives have "
            "no such members: download this one again from the data set's page."
        )
    return plain


def is_litter(name: str) -> bool:
    """True if macOS added this member when it packed the archive."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or bool(parts and parts[-1].startswith("._"))
