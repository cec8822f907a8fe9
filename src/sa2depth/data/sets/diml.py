"""DIML/CVD outdoor: street scenes of stereo cameras, found by searching a folder for ``outleft/*.png``.

Beside every ``outleft`` is a ``depthmap`` with 16-bit PNGs of the same size in millimetres, computed by stereo
matching. The sample archive holds ``outdoor/{train,test}/{HR,LR}/outleft``, 1,505 and 500 images of 1080x1920 (HR)
or 384x640 (LR) pixels; the full set has one folder for each recording. The publishers give no split list, and the
calibration of the cameras is not known: intrinsics stay unknown.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, get_args

from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import MILLIMETRE_PNG, Limited
from sa2depth.data.io.walk import walk
from sa2depth.data.listing import Listing, named
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part, hold_out, require_choice
from sa2depth.errors import ConfigError, DataError

__all__ = ["diml_outdoor"]

Split = Literal["train", "test", "all"]
Resolution = Literal["HR", "LR"]

MAX_DEPTH = 80.0
"""Metres; the usual cap of outdoor evaluations."""

_FARTHEST = 65.5345
# Metres. 65535 mm, the largest 16-bit value, means that far or farther, sky included: it is not a measurement.
# Metric3D drops it as well; ZoeDepth's evaluation counts it as a wall 65.5 m away.

_IMAGES, _DEPTHS = "outleft", "depthmap"
_TEST_FOLDERS = {"test", "testing", "validation", "val"}
_ADVICE = (
    f"Expected SCENE/{_IMAGES}/*.png and SCENE/{_DEPTHS}/*.png anywhere below, as in the archives of "
    "dimlrgbd.github.io.\nSet paths.data_dir (its folder 'diml' is searched) or data.test.root."
)


def outdoor(
    root: Path | str,
    split: Split = "test",
    test_every: int = 10,
    resolution: Resolution | None = None,
    max_depth: float = MAX_DEPTH,
) -> Listing:
    """All pairs of ``outleft`` and ``depthmap`` below a folder, divided into training and test.

    The test selection, in this order:

    1. the images in folders named ``test``, ``testing``, ``validation`` or ``val`` below ``root``, if there are any;
    2. otherwise every ``test_every``-th place in alphabetical order, beginning with the first.

    The other images are for training. A place is a folder that holds ``outleft``; if there is only one such
    folder, a place is the common part of file names before their last number.

    Args:
        root: folder to search.
        split: ``test``, ``train`` or ``all``.
        test_every: see above; no effect if test folders exist.
        resolution: ``HR`` or ``LR``: use only folders below one of that name; needed if ``root`` holds both, as
            each image would count twice.
        max_depth: metres; larger depth counts as not measured, as does the largest 16-bit value, 65.535 m.

    Returns:
        Frames sorted by folder and name. Images of one split may differ in size.

    Raises:
        ConfigError: a choice is unknown, or ``resolution`` is needed.
        DataError: nothing is found, or images and depth maps do not pair; the message names them.
    """
    require_choice(f"DIML outdoor has no split '{split}'", split, get_args(Split))
    if resolution is not None and resolution not in get_args(Resolution):
        raise ConfigError(f"DIML outdoor has no resolution '{resolution}': choose HR or LR")
    if not max_depth > 0:
        raise ConfigError(f"max_depth={max_depth}: expected a positive number of metres")
    if test_every < 2:
        raise ConfigError(f"test_every={test_every}: expected at least 2 (every 2nd place is for testing)")
    root = Path(root).expanduser()
    scenes = _of_resolution(_scenes(root), resolution, root)
    decode = Limited(MILLIMETRE_PNG, 0.0, min(max_depth, _FARTHEST))
    frames = [
        Frame(
            image=image,
            depth=depth,
            intrinsics=None,
            id=(PurePosixPath(scene) / image.stem).as_posix(),
            place=scene if len(scenes) > 1 else _recording(scene, image.stem),
            decode=decode,
        )
        for scene in scenes
        for image, depth in _pairs(root / scene)
    ]
    return Listing(
        title=f"DIML outdoor{f' {resolution}' if resolution else ''}, {split}, to {max_depth:g} m",
        root=root,
        frames=tuple(_divided(frames, split, test_every)),
        advice=_ADVICE,
        depth_range=(0.0, max_depth),
    )


def _scenes(root: Path) -> list[str]:
    """Folders below ``root`` that hold ``outleft``, as paths relative to it, sorted."""
    found = []
    for folder, inner, _ in walk(root):
        if _IMAGES in inner:
            found.append(folder.relative_to(root).as_posix())
            inner.clear()  # do not list hundreds of thousands of file names again
    if not found:
        state = "it has none" if root.is_dir() else "this folder does not exist"
        raise DataError(f"DIML outdoor: no folder '{_IMAGES}' below {root}: {state}.\n{_ADVICE}")
    return sorted(found)


def _of_resolution(scenes: Sequence[str], resolution: Resolution | None, root: Path) -> list[str]:
    names = {scene: {part.upper() for part in PurePosixPath(scene).parts} for scene in scenes}
    both = {name for name in get_args(Resolution) if any(name in parts for parts in names.values())}
    if resolution is None:
        if len(both) > 1:
            raise ConfigError(
                f"{root} holds every image twice, below HR (1080x1920) and LR (384x640): "
                "set data.test.resolution=LR or HR"
            )
        return list(scenes)
    if resolution not in both:
        raise DataError(
            f"DIML outdoor: no folder '{resolution}' with '{_IMAGES}' below {root}; set resolution=null"
        )
    return [scene for scene in scenes if resolution in names[scene]]


def _divided(frames: Sequence[Frame], split: Split, test_every: int) -> Sequence[Frame]:
    if split == "all":
        return frames
    in_test = {frame.id: _in_test_folder(frame.id) for frame in frames}
    if any(in_test.values()):
        chosen = [frame for frame in frames if in_test[frame.id] == (split == "test")]
        if not chosen:
            raise DataError(
                f"DIML outdoor: no image is left for split={split}, because all are in test folders: add the training "
                "archives, or rename the folders that are not for testing"
            )
        return chosen
    return hold_out(frames, "held_out" if split == "test" else "fit", test_every)


def _in_test_folder(name: str) -> bool:
    return any(part.lower() in _TEST_FOLDERS for part in PurePosixPath(name).parts[:-1])


def _recording(scene: str, stem: str) -> str:
    prefix = re.sub(r"[\W_]*\d+\D*$", "", stem)
    return (PurePosixPath(scene) / prefix).as_posix()


def _pairs(scene: Path) -> list[tuple[Path, Path]]:
    """Images of a scene with their depth maps.

    They pair by equal names. If the names differ, but the last numbers in them are unique and the same in both
    folders, they pair by these numbers (``left_0001.png`` with ``depth_0001.png``).
    """
    images, depths = ({path.stem: path for path in _pngs(scene / name)} for name in (_IMAGES, _DEPTHS))
    if not images and not depths:
        raise DataError(f"{scene}: expected PNGs in '{_IMAGES}' and '{_DEPTHS}', found none")
    if images.keys() == depths.keys():
        return [(images[stem], depths[stem]) for stem in sorted(images)]
    by_number = [{_last_number(stem): stem for stem in stems} for stems in (images, depths)]
    left, right = by_number
    numbered = None not in left and len(left) == len(images) and len(right) == len(depths)
    if numbered and left.keys() == right.keys():
        return [
            (images[stem], depths[right[number]]) for number, stem in sorted(left.items(), key=lambda x: x[1])
        ]
    raise DataError(
        f"{scene}: every image of '{_IMAGES}' needs a depth map of the same name or number in '{_DEPTHS}', and "
        f"every depth map an image.\n"
        f"  {len(images)} images; without depth map: {named(images.keys() - depths.keys())}\n"
        f"  {len(depths)} depth maps; without image: {named(depths.keys() - images.keys())}\n"
        "Was an archive unpacked only in part? Unpack it again, or remove the files without a partner."
    )


def _pngs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.\n{_ADVICE}")
    # macOS leaves files '._NAME.png' behind, which are not images
    return [path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.name[0] != "."]


def _last_number(stem: str) -> int | None:
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def diml_outdoor(
    root: Path | str,
    split: Split = "test",
    test_every: int = 10,
    resolution: Resolution | None = None,
    max_depth: float = MAX_DEPTH,
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """Street scenes with depth in metres up to ``max_depth``.

    The first five arguments are those of `outdoor`, the others are those of `sa2depth.data.source.from_listing`.

    Raises:
        ConfigError: a choice is unknown, or ``resolution`` is needed.
        DataError: nothing is found, or images and depth maps do not pair.
    """
    listing = outdoor(root, split, test_every, resolution, max_depth)
    return from_listing(listing, part, every, limit, ids)


@dataclass(frozen=True)
class DimlOutdoor(Recipe):
    """DIML outdoor; the set has no published list, so everything found is taken."""

    title: ClassVar[str] = "DIML outdoor"
    searched: ClassVar[bool] = True
    archives: ClassVar[str] = (
        "the outdoor archives of dimlrgbd.github.io, or folders, with SCENE/outleft/*.png and SCENE/depthmap/*.png"
    )
    archive: ClassVar[str] = "the archives of dimlrgbd.github.io"

    def place(self, name: str, source: Source) -> str | None:
        """The path in the source, below the source's name if no folder in it names the recording."""
        path = PurePosixPath(name)
        if len(path.parts) < 2 or path.parent.name not in (_IMAGES, _DEPTHS) or path.suffix.lower() != ".png":
            return None
        if not source.linked:
            return (
                PurePosixPath(source.path.name.split(".")[0], path) if len(path.parts) < 3 else path
            ).as_posix()
        if source.path.is_relative_to(self.root):
            return None  # already somewhere in the tree, which is searched
        base = PurePosixPath(source.path.as_posix())
        while len(path.relative_to(base).parts) < 3:
            base = base.parent
        return path.relative_to(base).as_posix()

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`: one for each resolution if both are there, otherwise all images together."""
        if self.root.is_dir() and all(self._has(name) for name in get_args(Resolution)):
            return [partial(outdoor, self.root, "all", resolution=name) for name in get_args(Resolution)]
        return [partial(outdoor, self.root, "all")]

    def _has(self, resolution: str) -> bool:
        return any(folder.is_dir() for folder in self.root.rglob(f"{resolution}/outleft"))


RECIPES = {"diml_outdoor": DimlOutdoor}
