"""Sources of files: zip archives, tar archives, folders."""

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from sa2depth.data.prepare.members import Accept, Member, Reader, is_litter, safe_name
from sa2depth.errors import DataError

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""The errors that Python's archive readers raise for damaged or unsupported archives."""

_ENCRYPTED = 0x1


@dataclass(frozen=True)
class ZipSource:
    """A zip archive; members are extracted one by one."""

    path: Path
    kind: str = "zip archive"
    linked: bool = False
    sequential: bool = False

    def find(self, accept: Accept) -> Iterator[Member]:
        """See `Source`."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except DAMAGED as error:
            raise damaged(self.path, error) from error
        for info in sorted(infos, key=lambda info: info.header_offset):
            name = safe_name(info.filename, self.path)
            target = None if info.is_dir() or is_litter(name) else accept(name)
            if target is None:
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _not_a_file(self.path, name, "zip without -y")
            if info.flag_bits & _ENCRYPTED:
                raise DataError(
                    f"{self.path}: its member '{name}' is encrypted: unpack it and give the folder"
                )
            yield Member(name, target, info.file_size, info.CRC, handle=info)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See `Source`."""
        with zipfile.ZipFile(self.path) as archive:
            yield _ZipReader(archive)


@dataclass(frozen=True)
class _ZipReader:
    archive: zipfile.ZipFile

    def open(self, member: Member) -> BinaryIO:
        # zipfile compares the CRC when the last byte is read
        return cast("BinaryIO", self.archive.open(member.handle))


@dataclass(frozen=True)
class TarSource:
    """A tar archive, compressed or not."""

    path: Path
    sequential: bool
    kind: str = "tar archive"
    linked: bool = False

    @classmethod
    def of(cls, path: Path) -> "TarSource":
        """The archive at ``path``; compressed ones can only be read from the front.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with path.open("rb") as file:
                file.seek(257)
                return cls(path, sequential=file.read(5) != b"ustar")
        except OSError as error:
            raise damaged(path, error) from error

    def find(self, accept: Accept) -> Iterator[Member]:
        """See `Source`. This reads a compressed archive once from end to end."""
        try:
            with tarfile.open(self.path) as archive:
                infos = archive.getmembers()
                self._require_end(archive)
        except DAMAGED as error:
            raise damaged(self.path, error) from error
        for info in infos:
            name = safe_name(info.name, self.path)
            target = None if info.isdir() or is_litter(name) else accept(name)
            if target is None:
                continue
            if not info.isreg():
                raise _not_a_file(self.path, name, "tar --dereference --hard-dereference")
            yield Member(name, target, info.size, handle=info)

    def _require_end(self, archive: tarfile.TarFile) -> None:
        """Fail unless a block of zeros follows the last member: tarfile accepts any end between members."""
        if self.sequential:
            return  # decompressing has checked this, and seeking back would decompress again
        with self.path.open("rb") as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError(f"no end mark after {archive.offset:,} bytes")

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See `Source`."""
        with tarfile.open(self.path) as archive:
            yield _TarReader(archive)


@dataclass(frozen=True)
class _TarReader:
    archive: tarfile.TarFile

    def open(self, member: Member) -> BinaryIO:
        return cast("BinaryIO", self.archive.extractfile(member.handle))


@dataclass(frozen=True)
class FolderSource:
    """A folder with unpacked files; links are made to them.

    Attributes:
        path: the folder, absolute.
        leave_out: a folder below that is not searched, namely the tree that is being prepared.
    """

    path: Path
    leave_out: Path | None = None
    kind: str = "folder"
    linked: bool = True
    sequential: bool = False
    dangling: list[str] = field(default_factory=list, compare=False)

    def find(self, accept: Accept) -> Iterator[Member]:
        """See `Source`. Rules get the absolute name, so that a folder deep in the expected tree also works."""
        self.dangling.clear()
        for path in self.files():
            name = path.as_posix()
            target = accept(name)
            if target is None:
                continue
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                self.dangling.append(name)
                continue
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            yield Member(name, target, size, handle=path)

    def files(self) -> Iterator[Path]:
        """All files below; links are followed and each folder is visited once.

        Raises:
            DataError: a folder cannot be read.
        """
        seen: set[tuple[int, int]] = set()
        for folder, inner, names in os.walk(self.path, followlinks=True, onerror=_unreadable):
            here = Path(folder)
            state = here.stat()
            if (state.st_dev, state.st_ino) in seen or here == self.leave_out:
                inner.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            inner.sort()
            yield from (here / name for name in sorted(names) if not is_litter(name))

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See `Source`."""
        yield _FileReader()


class _FileReader:
    def open(self, member: Member) -> BinaryIO:
        path: Path = member.handle
        return path.open("rb")


def damaged(path: Path, error: BaseException, member: str = "") -> DataError:
    """The error for an archive, or one member of it, that cannot be read."""
    what = f"its member '{member}' is damaged or ends early" if member else "it is damaged or incomplete"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path}: {what} ({reason}). Download it again; a broken download can be continued.")


def _not_a_file(path: Path, name: str, how: str) -> DataError:
    return DataError(
        f"{path}: its member '{name}' is a link or a device, not a file. Links in archives are not followed "
        f"as they may lead anywhere. Give the folder that was packed, or pack it again with real files ({how})."
    )


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: this folder cannot be read ({error.strerror})") from error
