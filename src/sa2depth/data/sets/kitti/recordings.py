"""The places of KITTI's files: recordings as unpacked, annotated depth in any usual place.

Recordings: ``DATE/DRIVE/image_02/data/%010d.png`` and ``DATE/calib_cam_to_cam.txt``. Annotated depth:
``DRIVE/proj_depth/groundtruth/image_02/%010d.png`` below the recording's day (the merged layout of the BTS family),
below the root, or in the official archives' ``train`` and ``val``. No file has to be moved.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, get_args

from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import DepthDecoder, PngDepth
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.sets.kitti.calibration import (
    CAMERAS_FILE,
    SCANNER_FILE,
    camera_intrinsics,
    scanner_to_image,
)
from sa2depth.data.sets.kitti.velodyne import VelodyneDepth
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import ConfigError

KITTI_PNG = PngDepth(256.0)
"""Decoder of every depth PNG of KITTI: 16 bits, 256 units per metre."""

DEPTH_RANGE = (0.5, 130.0)
"""Metres; the range of the laser scanner with a margin."""

OFFICIAL_VAL_TABLE = "kitti_official_val"

Camera = Literal["left", "right", "both"]
Measured = Literal["annotated", "velodyne"]

_FOLDERS = {"left": ("image_02",), "right": ("image_03",), "both": ("image_02", "image_03")}
_DAY, _DRIVE = "2011_[01][0-9]_[0-3][0-9]", "2011_*_drive_*_sync"
_RAW = ("", "raw", "raw_data", "kitti_raw")
_ARCHIVES = ("data_depth_annotated/train", "data_depth_annotated/val", "train", "val", "data_depth_annotated")

_IN_DRIVE = r"(?:^|/)(?P<drive>2011_\d\d_\d\d_drive_\d{4}_sync)"
_IMAGE = re.compile(rf"{_IN_DRIVE}/(?P<camera>image_0[23])/data/(?P<file>(?P<number>\d{{10}})\.(?:png|jpg))$")
_TRUTH = re.compile(
    rf"{_IN_DRIVE}/proj_depth/groundtruth/(?P<camera>image_0[23])/(?P<file>(?P<number>\d{{10}})\.png)$"
)
_SCAN = re.compile(rf"{_IN_DRIVE}/velodyne_points/data/(?P<file>(?P<number>\d{{10}})\.bin)$")
_CALIBRATION = re.compile(
    rf"(?:^|/)(?P<day>2011_\d\d_\d\d)/(?P<file>{re.escape(CAMERAS_FILE)}|{re.escape(SCANNER_FILE)})$"
)

_SOURCES = (
    "Recordings and calibration: KITTI's raw data page, archives DRIVE_sync.zip and DATE_calib.zip. Annotated depth: "
    "data_depth_annotated.zip of the depth prediction page; unpack it below the root, or anywhere and name the folder "
    "as depth_root. No file has to be moved.\n"
    "Set paths.data_dir (its folder 'kitti' is searched) or data.train.root and data.train.depth_root."
)


def camera_folders(camera: str) -> tuple[str, ...]:
    """``image_02`` for ``left``, ``image_03`` for ``right``, or both.

    Raises:
        ConfigError: the word is unknown.
    """
    if camera not in get_args(Camera):
        raise ConfigError(f"camera={camera!r}: choose one of {', '.join(get_args(Camera))}")
    return _FOLDERS[camera]


@cache
def validation_drives() -> frozenset[str]:
    """The 13 drives that the benchmark keeps for validation."""
    return frozenset(scene.split("/")[0] for scene, _ in read_table(OFFICIAL_VAL_TABLE))


class KittiTree:
    """A user's KITTI folders.

    Every folder is looked for once; `Listing.require` checks the single files.

    Args:
        root: folder with the recording days (``2011_09_26`` ...), directly or in a folder ``raw``, ``raw_data`` or
            ``kitti_raw``.
        depth_root: folder with the annotated depth; None: look for it below ``root``.
    """

    def __init__(self, root: Path | str, depth_root: Path | str | None = None) -> None:
        self.root = Path(root).expanduser()
        places = [self.root / name for name in _RAW]
        days = (place for place in places if any(place.glob(f"{_DAY}/{_DRIVE}/image_0[23]")))
        self.raw = next(days, next((place for place in places if any(place.glob(_DAY))), self.root))
        self._bases = list(dict.fromkeys((self.raw, self.root)))
        if depth_root is not None:
            self._bases = [Path(depth_root).expanduser()]
        self._archives = [base / name for base in self._bases for name in _ARCHIVES]
        self._present = [folder for folder in (*self._archives, *self._bases) if folder.is_dir()]
        self._annotated: dict[tuple[str, str], Path] = {}
        self._cameras: dict[tuple[Path, str], tuple[float, float, float, float] | None] = {}

    def frames(self, drive: str, camera: str, numbers: Iterable[int], truth: Measured | None) -> list[Frame]:
        """Frames of one camera of a drive, whether or not their files exist.

        Args:
            drive: e.g. ``2011_09_26_drive_0001_sync``.
            camera: ``image_02`` or ``image_03``.
            numbers: numbers of the frames.
            truth: kind of their ground truth; None: they have none.

        Raises:
            DataError: a calibration file is broken; `Listing.require` names absent ones.
        """
        day = self.raw / drive[:10]
        images = self.images(drive, camera)
        present = _names(images)
        intrinsics = self._intrinsics(day, camera)
        # Calibration is read here; an absent file is listed as one that the frame needs, so that it is reported.
        needed = None if intrinsics else day / CAMERAS_FILE
        decode: DepthDecoder = KITTI_PNG
        maps, suffix = None, ".png"
        if truth == "annotated":
            maps = self.annotated(drive, camera)
        elif truth == "velodyne":
            maps, suffix = self.scans(drive), ".bin"
            scanner = _scanner(day, camera)
            decode = scanner or KITTI_PNG
            needed = needed or (None if scanner else day / SCANNER_FILE)
        return [
            Frame(
                image=images / _image_name(number, present),
                depth=None if maps is None else maps / f"{number:010d}{suffix}",
                intrinsics=intrinsics,
                id=f"{drive}/{camera}/{number:010d}",
                place=drive,
                decode=decode,
                intrinsics_file=needed,
            )
            for number in numbers
        ]

    def images(self, drive: str, camera: str) -> Path:
        """Folder with the photographs of one camera of a drive."""
        return self.raw / drive[:10] / drive / camera / "data"

    def scans(self, drive: str) -> Path:
        """Folder with the scans of a drive."""
        return self.raw / drive[:10] / drive / "velodyne_points" / "data"

    def annotated(self, drive: str, camera: str) -> Path:
        """Folder with the annotated depth of one camera, or its expected place if there is none."""
        key = drive, camera
        if key not in self._annotated:
            inner = Path(drive, "proj_depth", "groundtruth", camera)
            parents = [*(base / drive[:10] for base in self._bases), *self._present]
            part = "val" if drive in validation_drives() else "train"
            default = self._bases[-1] / "data_depth_annotated" / part / inner
            found = (parent / inner for parent in parents if (parent / inner).is_dir())
            self._annotated[key] = next(found, default)
        return self._annotated[key]

    def annotated_drives(self) -> list[str]:
        """Names of all drives with annotated depth, sorted."""
        days = [day for base in self._bases for day in base.glob(_DAY)]
        return sorted(
            {
                drive.name
                for parent in (*days, *self._present)
                for drive in parent.glob(_DRIVE)
                if (drive / "proj_depth" / "groundtruth").is_dir()
            }
        )

    def place(
        self,
        name: str,
        image: Callable[[str, str, int], bool],
        truth: Callable[[str, str, int], bool],
        scan: Callable[[str, int], bool],
    ) -> str | None:
        """The place below the root for a member of an archive; None unless it is a wanted part of a recording.

        Args:
            name: name of the member.
            image: tells if the photograph of a drive, camera and number is wanted.
            truth: tells the same for its annotated depth map.
            scan: tells the same for the scan of a drive and number.
        """
        path = None
        if match := _IMAGE.search(name):
            if image(match["drive"], match["camera"], int(match["number"])):
                path = self.images(match["drive"], match["camera"]) / match["file"]
        elif match := _TRUTH.search(name):
            if truth(match["drive"], match["camera"], int(match["number"])):
                path = self.annotated(match["drive"], match["camera"]) / match["file"]
        elif match := _SCAN.search(name):
            if scan(match["drive"], int(match["number"])):
                path = self.scans(match["drive"]) / match["file"]
        elif match := _CALIBRATION.search(name):
            path = self.raw / match["day"] / match["file"]
        return None if path is None else path.relative_to(self.root).as_posix()

    def advice(self) -> str:
        """Text for errors: the folders that were searched and the archives to get."""
        state = "" if self.raw.is_dir() else " (this folder does not exist)"
        inside = ",".join(("DATE", *_ARCHIVES, "."))
        depth = "\n  ".join(f"{base}/{{{inside}}}/DRIVE" for base in self._bases)
        return (
            f"Recordings are expected in {self.raw}/DATE/DRIVE{state}: image_02/data/0000000005.png (or .jpg), and "
            f"DATE/{CAMERAS_FILE}.\n"
            "Annotated depth is expected as proj_depth/groundtruth/image_02/0000000005.png in\n  "
            f"{depth}\n{_SOURCES}"
        )

    def _intrinsics(self, day: Path, camera: str) -> tuple[float, float, float, float] | None:
        key = day, camera
        if key not in self._cameras:
            there = (day / CAMERAS_FILE).is_file()
            self._cameras[key] = camera_intrinsics(day, int(camera[-2:])) if there else None
        return self._cameras[key]


def _scanner(day: Path, camera: str) -> VelodyneDepth | None:
    if not all((day / name).is_file() for name in (CAMERAS_FILE, SCANNER_FILE)):
        return None
    return VelodyneDepth.of(scanner_to_image(day, int(camera[-2:])))


def _names(folder: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in folder.iterdir()) if folder.is_dir() else frozenset()


def _image_name(number: int, present: frozenset[str]) -> str:
    """The name of the PNG, or of the JPEG if a user has converted the recordings."""
    png, jpeg = f"{number:010d}.png", f"{number:010d}.jpg"
    return jpeg if jpeg in present and png not in present else png


@dataclass(frozen=True)
class KittiRecipe(Recipe):
    """The common part of KITTI's recipes.

    Attributes:
        everything: take all files of the archives, see the subclass.
        velodyne: take the laser scans too.
    """

    everything: bool = False
    velodyne: bool = False

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        name = path.as_posix()
        if _TRUTH.search(name):
            return "data_depth_annotated.zip"
        if match := (_IMAGE.search(name) or _SCAN.search(name)):
            return f"{match['drive']}.zip"
        if match := _CALIBRATION.search(name):
            return f"{match['day']}_calib.zip"
        return "KITTI's raw data page"

    @cached_property
    def tree(self) -> KittiTree:
        """The folders that are being prepared."""
        return KittiTree(self.root)
