"""Sources that read files: frames in, samples out; and the data sets by name, as configurations call them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sa2depth.data.images import read_depth, read_rgb
from sa2depth.data.index import nyu
from sa2depth.data.index.frame import Frame
from sa2depth.data.index.selection import Part, handful, hold_out
from sa2depth.data.sample import RawSample, camera_matrix
from sa2depth.errors import DataError


class FileSource:
    """Samples read from files (a `sa2depth.data.sample.Source`).

    Args:
        frames: which files; never empty.
        title: what the printed plan calls them.
        available: number of frames they were chosen from, where only a handful is used.
    """

    def __init__(self, frames: Sequence[Frame], title: str = "files", available: int | None = None) -> None:
        if not frames:
            raise DataError(f"{title}: the list of frames is empty")
        self.frames = tuple(frames)
        self.title = title
        self.available = len(self.frames) if available is None else available

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def ids(self) -> list[str]:
        """Ids of all samples, without reading a file."""
        return [frame.id for frame in self.frames]

    def __getitem__(self, index: int) -> RawSample:
        """Read one sample.

        Raises:
            DataError: a file is broken, or image and depth differ in size; with the file's name.
        """
        frame = self.frames[index]
        image = read_rgb(frame.image)
        depth = None if frame.depth is None else read_depth(frame.depth, frame.depth_scale)
        if depth is not None and depth.shape != image.shape[:2]:
            raise DataError(
                f"{frame.depth}: expected the size of its image {frame.image.name}, "
                f"{image.shape[0]}x{image.shape[1]}, found {depth.shape[0]}x{depth.shape[1]}"
            )
        return RawSample(image, depth, camera_matrix(*frame.intrinsics), frame.id)

    def describe(self) -> str:
        """For example ``NYU v2 labelled, test: 654 images, 16 place(s), below /data/nyu``."""
        places = len({frame.place for frame in self.frames})
        folder = _common_folder(self.frames)
        total = "" if len(self) == self.available else f" of {self.available:,}"
        return f"{self.title}: {len(self):,}{total} images, {places:,} place(s), below {folder}"


def nyu_sync(
    root: Path | str,
    split: str = "36253",
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """NYU v2 raw sequences for training.

    Args:
        root: see `sa2depth.data.index.nyu.sync`.
        split: ``36253`` or ``24231``.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.index.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.
    """
    return _chosen(partial(nyu.sync, root, split), f"NYU v2 sync {split}", part, every, limit, ids)


def nyu_labelled(
    root: Path | str,
    split: str = "train",
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """NYU v2 labelled set: 795 training or 654 test images; arguments as in `nyu_sync`."""
    return _chosen(partial(nyu.labelled, root, split), f"NYU v2 labelled, {split}", part, every, limit, ids)


def _chosen(
    read: Callable[..., list[Frame]],
    title: str,
    part: Part,
    every: int,
    limit: int | None,
    ids: Sequence[str] | None,
) -> FileSource:
    available = 0

    def choose(frames: Sequence[Frame]) -> list[Frame]:
        nonlocal available
        divided = hold_out(frames, part, every)
        available = len(divided)
        return handful(divided, limit, ids)

    titles = {
        "all": title,
        "fit": f"{title} without every {every}th place",
        "held_out": f"{title}, every {every}th place held out",
    }
    return FileSource(read(choose=choose), titles[part], available)


def _common_folder(frames: Sequence[Frame]) -> Path:
    folders = {frame.image.parent for frame in frames}
    return next(up for up in frames[0].image.parents if all(folder.is_relative_to(up) for folder in folders))
