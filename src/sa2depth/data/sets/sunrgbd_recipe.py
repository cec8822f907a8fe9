"""SUN RGB-D from ``SUNRGBD.zip``: the 5,050 test images of its 10,335."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.prepare.verdict import SplitState
from sa2depth.data.sets import sunrgbd

_SENSORS = ("kv1", "kv2", "realsense", "xtion")
_FILE = re.compile(
    rf"(?:^|/)(?P<folder>(?:{'|'.join(_SENSORS)})/.+)/"
    r"(?P<file>image/[^/]+\.jpg|depth(?:_bfx)?/[^/]+\.png|intrinsics\.txt)$"
)


@dataclass(frozen=True)
class SunRgbd(Recipe):
    """SUN RGB-D: photographs, raw and filled depth, camera matrices.

    Attributes:
        everything: all images, not only the test images.
    """

    everything: bool = False

    title: ClassVar[str] = "SUN RGB-D"
    archives: ClassVar[str] = "SUNRGBD.zip (6.4 GB) of rgbd.cs.princeton.edu, or the folder SUNRGBD"

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        match = _FILE.search(name)
        if not match:
            return None
        target = f"{match['folder']}/{match['file']}"
        return self.below(self._folder) + target if self.everything or target in self._wanted else None

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(sunrgbd.listing, self._folder, depth) for depth in ("depth", "depth_bfx")]

    def enough(self, states: Sequence[SplitState]) -> bool:
        """Raw depth is enough; filled depth is for those who ask for it."""
        return states[0].complete

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        return "SUNRGBD.zip"

    @cached_property
    def _folder(self) -> Path:
        """``root/SUNRGBD``; ``root`` where it is that folder itself."""
        here = any((self.root / sensor).is_dir() for sensor in _SENSORS)
        return self.root if here and not (self.root / "SUNRGBD").is_dir() else self.root / "SUNRGBD"

    @cached_property
    def _wanted(self) -> frozenset[str]:
        return frozenset(
            f"{entry.folder}/{file}"
            for entry in sunrgbd.read_table()
            for file in (
                f"image/{entry.image}.jpg",
                f"depth/{entry.depth}.png",
                f"depth_bfx/{entry.depth}.png",
                "intrinsics.txt",
            )
        )
