"""KITTI, official depth prediction: the selection for validation and test, and every annotated recording."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.sets.kitti.official import SPLITS, official
from sa2depth.data.sets.kitti.recipe import KittiRecordings, origin_of
from sa2depth.data.sets.kitti.recordings import validation_drives

_SELECTION = re.compile(
    r"(?:^|/)(?P<part>val_selection_cropped|test_depth_prediction_anonymous)/"
    r"(?P<file>(?:image|groundtruth_depth|intrinsics)/[\w.]+)$"
)
_PARTS = {"val_selection_cropped": "val", "test_depth_prediction_anonymous": "test"}
_RECORDED = re.compile(r"(?P<drive>[^/]+_sync)/(?P<camera>image_0[23])/data/(?P<number>\d{10})\.(?:png|jpg)$")


@dataclass(frozen=True)
class KittiOfficial(Recipe):
    """The benchmark's division: all annotated training drives, 1,000 validation and 500 test images.

    Attributes:
        everything: also photographs without annotated depth, and the drives kept for validation.
        velodyne: the laser scans as well.
    """

    everything: bool = False
    velodyne: bool = False

    title: ClassVar[str] = "KITTI official"
    searched: ClassVar[bool] = True
    archives: ClassVar[str] = (
        "data_depth_selection.zip and data_depth_annotated.zip of KITTI's depth prediction page, and for training "
        "2011_09_26_drive_0001_sync.zip ... and 2011_09_26_calib.zip ... of its raw data page"
    )

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        if match := _SELECTION.search(name):
            target = self._selections[_PARTS[match["part"]]].root / match["file"]
            return self.below(target.parent) + target.name if target in self._selected else None
        return self._recordings.place(
            name,
            lambda drive, camera, number: self._of_training(drive),
            lambda drive, camera, number: self._of_training(drive),
            lambda drive, number: self.velodyne and self._of_training(drive),
        )

    def choose(self, targets: Collection[str]) -> Collection[str]:
        """Without the photographs that have no annotated depth, here or in the tree: ten of each recording."""
        if self.everything:
            return targets
        return [target for target in targets if self._annotated(target, targets)]

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(official, self.root, split) for split in SPLITS]

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        selected = {"val_selection_cropped", "test_depth_prediction_anonymous"} & set(path.parts)
        return "data_depth_selection.zip" if selected else origin_of(path)

    @cached_property
    def _recordings(self) -> KittiRecordings:
        return KittiRecordings(self.root)

    @cached_property
    def _selections(self) -> dict[str, Listing]:
        return {split: official(self.root, split) for split in ("val", "test")}

    @cached_property
    def _selected(self) -> frozenset[Path]:
        listings = self._selections.values()
        return frozenset(path for listing in listings for frame in listing.frames for path in frame.files)

    def _of_training(self, drive: str) -> bool:
        return self.everything or drive not in validation_drives()

    def _annotated(self, target: str, targets: Collection[str]) -> bool:
        match = _RECORDED.search(target)
        if not match:
            return True
        truth = self._recordings.truth(match["drive"], match["camera"], int(match["number"]))
        return truth in targets or (self.root / truth).exists()
