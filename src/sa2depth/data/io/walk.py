"""Walk through folders: links are followed, and no folder is visited twice, even if links form a loop."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder below ``root``, itself included, with the names of its folders and of its files.

    Folders that the caller removes from the list are not searched, as with `os.walk`. Names are sorted; hidden ones
    (``.git``, and the ``._NAME`` that macOS leaves in archives) are left out.
    """
    seen = {root.resolve()}
    for name, inner, files in os.walk(root, followlinks=True):
        folder = Path(name)
        inner[:] = sorted(entry for entry in inner if not entry.startswith("."))
        yield folder, inner, sorted(entry for entry in files if not entry.startswith("."))
        inner[:] = [entry for entry in inner if _first_visit(folder / entry, seen)]


def _first_visit(folder: Path, seen: set[Path]) -> bool:
    target = folder.resolve()
    if target in seen:
        return False
    seen.add(target)
    return True
