"""KITTI, official depth prediction: all annotated drives, the validation selection, the anonymous test images."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from sa2depth.data.frame import Frame
from sa2depth.data.listing import Listing, files_of
from sa2depth.data.prepare.members import Source
from sa2depth.data.sets.kitti.recordings import (
    DEPTH_RANGE,
    KITTI_PNG,
    OFFICIAL_VAL_TABLE,
    KittiRecipe,
    KittiTree,
    camera_folders,
    validation_drives,
)
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part, require_choice
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")

SELECTION_SIZE = (352, 1216)
"""``(H, W)`` of the validation selection and of the test images."""

TEST_IMAGES = 500

_SELECTION_FOLDERS = ("depth_selection", "data_depth_selection/depth_selection", "data_depth_selection", "")
_MAP = re.compile(r"(\d{10})\.png")
_SELECTION = re.compile(
    r"(?:^|/)(?P<part>val_selection_cropped|test_depth_prediction_anonymous)/"
    r"(?P<file>(?:image|groundtruth_depth|intrinsics)/[\w.]+)$"
)
_PARTS = {"val_selection_cropped": "val", "test_depth_prediction_anonymous": "test"}
_RECORDED = re.compile(r"(?P<drive>[^/]+_sync)/(?P<camera>image_0[23])/data/(?P<number>\d{10})\.(?:png|jpg)$")
_ADVICE = (
    "It comes with data_depth_selection.zip of KITTI's depth prediction page: unpack it below the root. "
    "Set paths.data_dir (its folder 'kitti' is searched) or data.test.root."
)


def official(
    root: Path | str, split: str = "train", camera: str = "both", depth_root: Path | str | None = None
) -> Listing:
    """Frames of the benchmark's own splits.

    Args:
        root: folder of the recordings and of ``depth_selection``.
        split: ``train`` = every annotated drive found except the 13 for validation, as whole recordings (the archive
            holds 42,949 frames of each camera); ``val`` = the 1,000 images ``val_selection_cropped``; ``test`` =
            the 500 images ``test_depth_prediction_anonymous``, without ground truth.
        camera: ``both``, ``left`` or ``right``, of the training drives; the other splits are as published.
        depth_root: folder of the annotated depth of the training drives, if it is not below ``root``.

    Raises:
        ConfigError: split or camera is unknown, or the split has no choice of camera.
        DataError: no annotated drive is found, or a calibration file is broken.
    """
    require_choice(f"KITTI official has no split '{split}'", split, SPLITS)
    folders = camera_folders(camera)
    if split == "train":
        return _train(KittiTree(root, depth_root), folders)
    if camera != "both" or depth_root is not None:
        raise ConfigError(
            f"KITTI official, {split}: camera and depth_root are for split=train only: leave them out"
        )
    return _val(Path(root).expanduser()) if split == "val" else _test(Path(root).expanduser())


def _train(tree: KittiTree, folders: tuple[str, ...]) -> Listing:
    # Validation drives are left out by name, not by folder, in case a user has merged 'train' and 'val'.
    drives = [drive for drive in tree.annotated_drives() if drive not in validation_drives()]
    frames = [
        frame
        for drive in drives
        for folder in folders
        for frame in tree.frames(drive, folder, _numbers(tree.annotated(drive, folder)), "annotated")
    ]
    if not frames:
        raise DataError(f"KITTI official, train: no annotated drive was found\n{tree.advice()}")
    return Listing(
        title=f"KITTI official, train ({' and '.join(folders)})",
        root=tree.root,
        frames=tuple(frames),
        advice=tree.advice(),
        depth_range=DEPTH_RANGE,
    )


def _numbers(folder: Path) -> list[int]:
    """Numbers of the frames in a folder of annotated depth, ascending; none if there is no folder."""
    names = (_MAP.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def _val(root: Path) -> Listing:
    folder = _selection(root, "val_selection_cropped")
    frames = []
    for scene, number in read_table(OFFICIAL_VAL_TABLE):
        drive, camera = scene.split("/")
        name = f"{drive}_image_{number:010d}_{camera}"
        frames.append(
            Frame(
                image=folder / "image" / f"{name}.png",
                depth=folder / "groundtruth_depth" / f"{drive}_groundtruth_depth_{number:010d}_{camera}.png",
                intrinsics=None,
                id=f"{scene}/{number:010d}",
                place=drive,
                decode=KITTI_PNG,
                intrinsics_file=folder / "intrinsics" / f"{name}.txt",
            )
        )
    return Listing(
        "KITTI official, val selection", folder, tuple(frames), _ADVICE, SELECTION_SIZE, DEPTH_RANGE, 1000
    )


def _test(root: Path) -> Listing:
    folder = _selection(root, "test_depth_prediction_anonymous")
    frames = tuple(
        Frame(
            image=folder / "image" / f"{number:010d}.png",
            depth=None,
            intrinsics=None,
            id=f"{number:010d}",
            decode=KITTI_PNG,
            intrinsics_file=folder / "intrinsics" / f"{number:010d}.txt",
        )
        for number in range(TEST_IMAGES)
    )
    return Listing("KITTI official, test", folder, frames, _ADVICE, SELECTION_SIZE, DEPTH_RANGE, TEST_IMAGES)


def _selection(root: Path, name: str) -> Path:
    """The folder of a selection, or its expected place if there is none."""
    places = [root / above / name for above in _SELECTION_FOLDERS]
    return next((place for place in places if place.is_dir()), places[0])


def kitti_official(
    root: Path | str,
    split: str = "train",
    camera: str = "both",
    depth_root: Path | str | None = None,
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """KITTI, the benchmark's own splits: all training drives, 1,000 validation or 500 test images.

    The first four arguments are those of `official`, the others are those of `sa2depth.data.source.from_listing`. Test
    images have no depth.

    Raises:
        ConfigError: split, camera or part is unknown.
        DataError: files are missing.
    """
    listing = official(root, split, camera, depth_root)
    return from_listing(listing, part, every, limit, ids, keep_without_truth=split == "test")


@dataclass(frozen=True)
class KittiOfficial(KittiRecipe):
    """The benchmark's splits: all annotated training drives, 1,000 validation and 500 test images.

    ``everything`` also takes photographs without annotated depth, and the drives kept for validation.
    """

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
        return self.tree.place(
            name,
            lambda drive, camera, number: self._of_training(drive),
            lambda drive, camera, number: self._of_training(drive),
            lambda drive, number: self.velodyne and self._of_training(drive),
        )

    def choose(self, targets: Collection[str]) -> Collection[str]:
        """All but the photographs without annotated depth, here or in the tree: ten of each recording."""
        if self.everything:
            return targets
        return [target for target in targets if self._annotated(target, targets)]

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(official, self.root, split) for split in SPLITS]

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        selected = {"val_selection_cropped", "test_depth_prediction_anonymous"} & set(path.parts)
        return "data_depth_selection.zip" if selected else super().origin(path)

    @cached_property
    def _selections(self) -> dict[str, Listing]:
        return {split: official(self.root, split) for split in ("val", "test")}

    @cached_property
    def _selected(self) -> frozenset[Path]:
        return frozenset(path for listing in self._selections.values() for path in files_of(listing.frames))

    def _of_training(self, drive: str) -> bool:
        return self.everything or drive not in validation_drives()

    def _annotated(self, target: str, targets: Collection[str]) -> bool:
        match = _RECORDED.search(target)
        if not match:
            return True
        truth = self.tree.annotated(match["drive"], match["camera"]) / f"{match['number']}.png"
        return truth.relative_to(self.root).as_posix() in targets or truth.exists()
