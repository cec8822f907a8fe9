"""DIML/CVD outdoor from its archives: every ``outleft`` and ``depthmap`` folder, where it stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, get_args

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.sets import diml

_FOLDERS = ("outleft", "depthmap")


@dataclass(frozen=True)
class DimlOutdoor(Recipe):
    """DIML outdoor; the set has no published list, so everything found is taken."""

    title: ClassVar[str] = "DIML outdoor"
    searched: ClassVar[bool] = True
    archives: ClassVar[str] = (
        "the outdoor archives of dimlrgbd.github.io, or folders, with SCENE/outleft/*.png and SCENE/depthmap/*.png"
    )

    def place(self, name: str, source: Source) -> str | None:
        """Its path in the source; below the source's name if that path has no folder that names the recording."""
        path = PurePosixPath(name)
        if len(path.parts) < 2 or path.parent.name not in _FOLDERS or path.suffix.lower() != ".png":
            return None
        if not source.linked:
            return (
                PurePosixPath(source.path.name.split(".")[0], path) if len(path.parts) < 3 else path
            ).as_posix()
        if source.path.is_relative_to(self.root):
            return None  # in the tree already, wherever below: the set is found by searching
        base = PurePosixPath(source.path.as_posix())
        while len(path.relative_to(base).parts) < 3:
            base = base.parent
        return path.relative_to(base).as_posix()

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`: one for each resolution where both are there, else all images together."""
        if self.root.is_dir() and all(self._has(name) for name in get_args(diml.Resolution)):
            return [
                partial(diml.outdoor, self.root, "all", resolution=name) for name in get_args(diml.Resolution)
            ]
        return [partial(diml.outdoor, self.root, "all")]

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        return "the archives of dimlrgbd.github.io"

    def _has(self, resolution: str) -> bool:
        return any(folder.is_dir() for folder in self.root.rglob(f"{resolution}/outleft"))
