"""The members that a source of files offers: files with a name, a size and their bytes, wherever they lie."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from sa2depth.errors import DataError

Accept = Callable[[str], str | None]
"""Name of a member to the path below the root where it belongs; None: it does not belong to this data set."""

_DRIVE_LETTER = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One file of a source that belongs to the data set.

    Attributes:
        name: of the member, with ``/`` between folders.
        target: where it belongs, below the root.
        size: bytes; of a made file the estimate, see ``mark``.
        crc: CRC-32 of the bytes, where the source knows it.
        mark: bytes that stand in the first kilobyte of a file that is made, not copied; its exact size is unknown.
        handle: what the source needs to find it again.
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
        """The member's bytes."""


class Source(Protocol):
    """An archive, a folder, or a file that others are made from.

    Attributes:
        path: where it lies.
        kind: what people are told it is, e.g. ``zip archive``.
        linked: whether members are files of their own, to which links can be made.
        sequential: whether members are only read quickly in their order, by one reader.
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
            DataError: the source is damaged or not to be trusted; with its name.
        """

    def open(self) -> AbstractContextManager[Reader]:
        """Open it for one thread."""


def safe_name(name: str, archive: Path) -> str:
    """A member's name with ``/`` between folders.

    Raises:
        DataError: the name leads out of the folder it would be unpacked in.
    """
    plain = name.replace("\\", "/")  # some Windows programs pack with backslashes
    parts = PurePosixPath(plain).parts
    if plain.startswith("/") or ".." in parts or _DRIVE_LETTER.match(plain) or "\0" in plain:
        raise DataError(
            f"{archive}: its member '{name}' leads out of the folder it is unpacked in. Archives of the data sets hold "
            "nothing of the kind: fetch this one again from the data set's page."
        )
    return plain


def is_litter(name: str) -> bool:
    """Whether a member is one that macOS adds to what it packs."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or bool(parts and parts[-1].startswith("._"))
