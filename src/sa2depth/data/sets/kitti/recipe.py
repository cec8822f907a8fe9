"""KITTI, Eigen's division: recordings of the raw data page and annotated depth of the depth prediction page."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.sets.kitti.calibration import CAMERAS_FILE, SCANNER_FILE
from sa2depth.data.sets.kitti.recordings import KittiTree
from sa2depth.data.splits.tables import read_table

_DRIVE = r"(?:^|/)(?P<drive>2011_\d\d_\d\d_drive_\d{4}_sync)"
_IMAGE = re.compile(rf"{_DRIVE}/(?P<camera>image_0[23])/data/(?P<number>\d{{10}})\.(?P<kind>png|jpg)$")
_TRUTH = re.compile(rf"{_DRIVE}/proj_depth/groundtruth/(?P<camera>image_0[23])/(?P<number>\d{{10}})\.png$")
_SCAN = re.compile(rf"{_DRIVE}/velodyne_points/data/(?P<number>\d{{10}})\.bin$")
_CALIBRATION = re.compile(
    rf"(?:^|/)(?P<day>2011_\d\d_\d\d)/(?P<file>{re.escape(CAMERAS_FILE)}|{re.escape(SCANNER_FILE)})$"
)


@dataclass(frozen=True)
class KittiRecordings:
    """Where the files of recordings belong below a root: as `KittiTree` finds those that are there."""

    root: Path
    _tree: KittiTree = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tree", KittiTree(self.root))

    def image(self, drive: str, camera: str, number: int, kind: str = "png") -> str:
        """A photograph."""
        return self._below(self._tree.raw / drive[:10] / drive / camera / "data" / f"{number:010d}.{kind}")

    def scan(self, drive: str, number: int) -> str:
        """The points of one turn of the laser scanner."""
        return self._below(
            self._tree.raw / drive[:10] / drive / "velodyne_points" / "data" / f"{number:010d}.bin"
        )

    def truth(self, drive: str, camera: str, number: int) -> str:
        """An annotated depth map; the official archive's folders where none exist yet."""
        return self._below(self._tree.annotated(drive, camera) / f"{number:010d}.png")

    def calibration(self, day: str, file: str) -> str:
        """A calibration file."""
        return self._below(self._tree.raw / day / file)

    def place(
        self,
        name: str,
        image: Callable[[str, str, int], bool],
        truth: Callable[[str, str, int], bool],
        scan: Callable[[str, int], bool],
    ) -> str | None:
        """Where a member belongs, if it is of a recording and wanted.

        Args:
            name: of the member.
            image: whether the photograph of a drive, camera and number is wanted.
            truth: whether its annotated depth map is.
            scan: whether the scan of a drive and number is.
        """
        if match := _IMAGE.search(name):
            frame = match["drive"], match["camera"], int(match["number"])
            return self.image(*frame, match["kind"]) if image(*frame) else None
        if match := _TRUTH.search(name):
            frame = match["drive"], match["camera"], int(match["number"])
            return self.truth(*frame) if truth(*frame) else None
        if match := _SCAN.search(name):
            drive, number = match["drive"], int(match["number"])
            return self.scan(drive, number) if scan(drive, number) else None
        if match := _CALIBRATION.search(name):
            return self.calibration(match["day"], match["file"])
        return None

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def origin_of(path: Path) -> str:
    """The archive of KITTI that holds a file of a recording."""
    name = path.as_posix()
    if match := _TRUTH.search(name):
        return "data_depth_annotated.zip"
    if match := (_IMAGE.search(name) or _SCAN.search(name)):
        return f"{match['drive']}.zip"
    if match := _CALIBRATION.search(name):
        return f"{match['day']}_calib.zip"
    return "KITTI's raw data page"


@dataclass(frozen=True)
class KittiEigen(Recipe):
    """Eigen's division: 23,158 training and 697 test frames of the left camera.

    Attributes:
        everything: all frames of both cameras, not only those of the lists.
        velodyne: the laser scans as well.
    """

    everything: bool = False
    velodyne: bool = False

    title: ClassVar[str] = "KITTI Eigen"
    archives: ClassVar[str] = (
        "2011_09_26_drive_0001_sync.zip ... and 2011_09_26_calib.zip ... of KITTI's raw data page, "
        "data_depth_annotated.zip of its depth prediction page, or folders with what is in them"
    )

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        return self._recordings.place(name, self._wanted, self._wanted, self._scan_wanted)

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        truth = "annotated_or_velodyne" if self.velodyne else "annotated"
        return [partial(kitti.eigen, self.root, split, "left", truth) for split in kitti.TABLES]

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        return origin_of(path)

    @cached_property
    def _recordings(self) -> KittiRecordings:
        return KittiRecordings(self.root)

    @cached_property
    def _frames(self) -> frozenset[tuple[str, int]]:
        return frozenset(entry for table in kitti.TABLES.values() for entry in read_table(table))

    @cached_property
    def _moments(self) -> frozenset[tuple[str, int]]:
        return frozenset((scene.split("/")[0], number) for scene, number in self._frames)

    def _wanted(self, drive: str, camera: str, number: int) -> bool:
        return self.everything or (f"{drive}/{camera}", number) in self._frames

    def _scan_wanted(self, drive: str, number: int) -> bool:
        return self.velodyne and (self.everything or (drive, number) in self._moments)
