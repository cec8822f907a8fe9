"""Open the paths that a user names as sources; the first bytes of a file tell its kind."""

from collections.abc import Iterable
from pathlib import Path

from sa2depth.data.prepare.archives import FolderSource, TarSource, ZipSource
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.errors import DataError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_FOREIGN = (".7z", ".rar", ".z01", ".001", ".part", ".crdownload", ".tar.zst")


def open_sources(paths: Iterable[Path], recipe: Recipe) -> list[Source]:
    """Open the sources at some paths.

    Args:
        paths: archives, or folders with unpacked files, with archives, or with both.
        recipe: recipe of the data set; it may read files of its own kind.

    Returns:
        Each source once, in the order of the paths; the archives of a folder before its files.

    Raises:
        DataError: a path does not exist, or is a file of another kind.
    """
    root = recipe.root.resolve()
    sources: dict[Path, Source] = {}
    for given in paths:
        path = given.expanduser().absolute()
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder")
        if path.is_dir():
            folder = FolderSource(
                path, None if path.resolve().is_relative_to(root) else recipe.root.absolute()
            )
            for file in folder.files():
                if file.name.lower().endswith(_ARCHIVES) or file.name in recipe.own_files:
                    sources.setdefault(file.resolve(), _open_file(file, recipe))
            # The plan is compared with files already in the tree; it does not take them from there.
            if path.resolve() != root:
                sources.setdefault(path.resolve(), folder)
        else:
            sources.setdefault(path.resolve(), _open_file(path, recipe))
    return list(sources.values())


def _open_file(path: Path, recipe: Recipe) -> Source:
    special = recipe.open_file(path)
    if special is not None:
        return special
    name = path.name.lower()
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ZipSource(path)
    if head[257:262] == b"ustar" or name.endswith(_ARCHIVES[1:]):
        return TarSource.of(path)
    kinds = ", ".join(("a zip or tar archive", "a folder", *recipe.own_files))
    advice = "unpack it and give the folder" if name.endswith(_FOREIGN) else "was the download interrupted?"
    raise DataError(f"{path}: expected one of {kinds}, found something else: {advice}")
