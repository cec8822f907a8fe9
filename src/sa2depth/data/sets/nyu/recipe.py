"""NYU Depth v2: the raw sequences from ``sync.zip``, the labelled set from its .mat file or from BTS's folders."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import ClassVar

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.prepare.verdict import SplitState
from sa2depth.data.sets import nyu
from sa2depth.data.sets.nyu.labelled_mat import LabelledMat, StoredDepth
from sa2depth.data.splits.tables import read_table

_PAIR = r"(\w+)/(?:rgb_(\d{5})\.jpg|sync_depth_(\d{5})\.png)"
_SYNC = re.compile(rf"(?:^|/){_PAIR}$")
_LABELLED = re.compile(rf"(?:^|/)official_splits/(train|test)/{_PAIR}$")
# A folder of the labelled set is never a raw sequence, although scenes of both may share name and number.
_NOT_SYNC = re.compile(r"(?:^|/)(?:official_splits|train|test)/[^/]+/[^/]+$")


@dataclass(frozen=True)
class NyuSync(Recipe):
    """Raw sequences, for training.

    Attributes:
        everything: all pairs, not only those of the two training lists.
    """

    everything: bool = False

    title: ClassVar[str] = "NYU v2 sync"
    archives: ClassVar[str] = (
        "sync.zip of the BTS authors (24,231 pairs), or the larger archive named in the README of NeWCRFs (36,253), "
        "with members such as sync/kitchen_0003/rgb_00000.jpg"
    )

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        match = _SYNC.search(name)
        if not match or _NOT_SYNC.search(name):
            return None
        frame = match[1], int(match[2] or match[3])
        if not self.everything and not any(frame in _frames(table) for table in nyu.SYNC_TABLES.values()):
            return None
        return self.below(self._folder) + match[0].lstrip("/")

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(nyu.sync, self._folder, split) for split in nyu.SYNC_TABLES]

    def enough(self, states: Sequence[SplitState]) -> bool:
        """One of the two lists is enough: nobody needs both."""
        return any(state.complete for state in states)

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        scene, number = path.parent.name, int(path.stem[-5:])
        return (
            "sync.zip" if (scene, number) in _frames(nyu.SYNC_TABLES["24231"]) else "the archive of NeWCRFs"
        )

    @cached_property
    def _folder(self) -> Path:
        """``root/sync``; ``root`` where the scenes lie there already."""
        scenes = {scene for scene, _ in read_table(nyu.SYNC_TABLES["36253"])}
        here = self.root.is_dir() and any(entry.name in scenes for entry in self.root.iterdir())
        return self.root if here and not (self.root / "sync").is_dir() else self.root / "sync"


@dataclass(frozen=True)
class NyuLabelled(Recipe):
    """The labelled set: 795 training and 654 test images.

    Attributes:
        depth: which of the depths of the .mat file: ``raw``, as the sensor measured it, or ``filled`` (in-painted).
    """

    depth: StoredDepth = "raw"

    title: ClassVar[str] = "NYU v2 labelled"
    archives: ClassVar[str] = (
        "nyu_depth_v2_labeled.mat (2.8 GB) of the data set's page, or what BTS's script made of it "
        "(official_splits/test/kitchen/rgb_00000.jpg ...)"
    )
    own_files: ClassVar[tuple[str, ...]] = ("nyu_depth_v2_labeled.mat",)

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        match = _LABELLED.search(name)
        if not match or (match[2], int(match[3] or match[4])) not in _frames(nyu.LABELLED_TABLES[match[1]]):
            return None
        return match[0].lstrip("/")

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(nyu.labelled, self.root, split) for split in nyu.LABELLED_TABLES]

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        return "nyu_depth_v2_labeled.mat"

    def open_file(self, path: Path) -> Source | None:
        """See `Recipe`."""
        return LabelledMat(path, self.depth) if path.suffix.lower() == ".mat" else None


@cache
def _frames(table: str) -> frozenset[tuple[str, int]]:
    return frozenset(read_table(table))
