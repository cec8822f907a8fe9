"""Sources that read files: frames in, samples out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import DepthMap
from sa2depth.data.io.images import photograph_size, read_mask, read_rgb
from sa2depth.data.listing import Listing
from sa2depth.data.sample import RawSample, camera_matrix, nearest_resized
from sa2depth.data.splits.selection import Part, handful, hold_out
from sa2depth.depth_size import why_not
from sa2depth.errors import DataError

Prepare = Callable[[RawSample], RawSample]

_MISSING_ALLOWED: ContextVar[bool] = ContextVar("missing_files_allowed", default=False)


class FileSource:
    """Samples read from files (a `sa2depth.data.sample.Source`).

    Args:
        frames: which files; never empty.
        title: what the printed plan calls them.
        available: number of frames they were chosen from, where only a handful is used.
        without_truth: number of images of the split that were left out because the data set has no ground
            truth for them; a protocol says how many it expects.
        prepare: fixed change of every sample as it is read, before any augmentation.
        listing: the split that the frames were chosen from, if there is one.

    Raises:
        DataError: the list is empty.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        title: str = "files",
        available: int | None = None,
        without_truth: int = 0,
        prepare: Prepare | None = None,
        listing: Listing | None = None,
    ) -> None:
        if not frames:
            raise DataError(f"{title}: the list of frames is empty")
        self.frames = tuple(frames)
        self.title = title
        self.available = len(self.frames) if available is None else available
        self.without_truth = without_truth
        self.prepare = prepare
        self.listing = listing

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
        sample = read_frame(self.frames[index])
        return sample if self.prepare is None else self.prepare(sample)

    def depth(self, index: int) -> npt.NDArray[np.float32] | None:
        """Depth of one sample; of its photograph no more than the size is read, unless `prepare` needs all of it.

        Raises:
            DataError: as for the whole sample.
        """
        frame = self.frames[index]
        if self._changes_samples:
            return self[index].depth
        return None if frame.depth is None else depth_of_frame(frame, photograph_size(frame.image))

    def fingerprint(self, indices: Iterable[int]) -> str | None:
        """Changes when the depth of some samples may have changed: names, sizes and times of all their files.

        Returns:
            A hexadecimal number; None where nobody can tell (`prepare`, decoders without a repr of their own, files
            that cannot be looked at).
        """
        if self._changes_samples:
            return None
        digest = hashlib.sha256()
        try:
            for frame in (self.frames[index] for index in indices):
                decoder = repr(frame.decode)
                if " at 0x" in decoder:
                    return None
                facts = [
                    (str(path.absolute()), (s := path.stat()).st_size, s.st_mtime_ns) for path in frame.files
                ]
                digest.update(repr((type(frame.decode).__qualname__, decoder, facts)).encode())
        except OSError:
            return None
        return digest.hexdigest()

    @property
    def _changes_samples(self) -> bool:
        """Whether depth may be another than that of the files."""
        return self.prepare is not None or type(self).__getitem__ is not FileSource.__getitem__

    def describe(self) -> str:
        """For example ``NYU v2 labelled, test: 654 images, 16 place(s), below /data/nyu``."""
        places = len({frame.place for frame in self.frames})
        folder = _common_folder(self.frames)
        total = "" if len(self) == self.available else f" of {self.available:,}"
        without = f", {self.without_truth:,} more have no ground truth" if self.without_truth else ""
        return f"{self.title}: {len(self):,}{total} images, {places:,} place(s), below {folder}{without}"


def from_listing(
    listing: Listing,
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    *,
    keep_without_truth: bool = False,
    prepare: Prepare | None = None,
) -> FileSource:
    """The chosen frames of a listing as a source; their files must be there.

    Args:
        listing: what the split holds.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.
        keep_without_truth: whether images without ground truth stay (for prediction); else they are left out
            and counted.
        prepare: see `FileSource`.

    Raises:
        ConfigError: the choice leaves no frame.
        DataError: files are missing, an id is unknown, or no frame has ground truth.
    """
    usable = [frame for frame in listing.frames if keep_without_truth or frame.depth is not None]
    if not usable:
        raise DataError(f"{listing.title}: none of {len(listing.frames):,} images has ground truth")
    divided = hold_out(usable, part, every)
    chosen = handful(divided, limit, ids)
    if not _MISSING_ALLOWED.get():
        listing.require(chosen)
    titles = {
        "all": listing.title,
        "fit": f"{listing.title} without every {every}th place",
        "held_out": f"{listing.title}, every {every}th place held out",
    }
    without_truth = len(listing.frames) - len(usable) if part == "all" and ids is None else 0
    return FileSource(chosen, titles[part], len(divided), without_truth, prepare, listing)


@contextmanager
def missing_files_allowed() -> Iterator[None]:
    """Sources made inside may lack files: for those who look what is missing, as `sa2depth data check` does."""
    token = _MISSING_ALLOWED.set(True)
    try:
        yield
    finally:
        _MISSING_ALLOWED.reset(token)


def read_frame(frame: Frame) -> RawSample:
    """Read the files of one frame.

    Returns:
        A sample at the photograph's own size; the camera matrix holds NaN where the camera is unknown.

    Raises:
        DataError: a file is absent or broken, or the sizes do not fit; with the file's name.
    """
    image = read_rgb(frame.image)
    depth = depth_of_frame(frame, (image.shape[0], image.shape[1]))
    return RawSample(image, depth, _camera(frame), frame.id)


def depth_of_frame(frame: Frame, size: tuple[int, int]) -> DepthMap | None:
    """Depth of a frame as its files have it, masked; None where it has none.

    Args:
        frame: which.
        size: ``(H, W)`` of its photograph, upright.

    Returns:
        ``(H, W)`` metres, or fewer pixels where the frame allows it; 0 = not measured.

    Raises:
        DataError: a file is absent or broken, or its size does not fit; with its name.
    """
    if frame.depth is None:
        return None
    depth = frame.decode(frame.depth, size)
    if problem := size_problem(frame, depth.shape, size):
        raise DataError(f"{frame.depth}: {problem}")
    if frame.mask is None:
        return depth
    mask = read_mask(frame.mask)
    if mask.shape not in (size, depth.shape):
        wanted = f"{size[0]}x{size[1]}, found {mask.shape[0]}x{mask.shape[1]}"
        raise DataError(f"{frame.mask}: expected the size of its image {frame.image.name}, {wanted}")
    return np.where(nearest_resized(mask, depth.shape), depth, np.float32(0))


def size_problem(frame: Frame, found: tuple[int, ...], size: tuple[int, int]) -> str | None:
    """What is wrong with the size of a frame's depth map beside its photograph of ``size``; None: nothing."""
    if frame.smaller_depth:
        return why_not((found[0], found[1]), size, frame.image.name)
    if found == size:
        return None
    return (
        f"expected the size of its image {frame.image.name}, {size[0]}x{size[1]}, found {found[0]}x{found[1]}"
    )


def read_camera(path: Path) -> npt.NDArray[np.float64]:
    """``(3, 3)`` camera matrix of a text file with its nine numbers.

    Raises:
        DataError: the file is absent or holds something else.
    """
    try:
        numbers = [float(word) for word in path.read_text().split()]
    except OSError as error:
        raise DataError(f"{path}: cannot read this camera matrix ({error.strerror})") from error
    except ValueError as error:
        raise DataError(
            f"{path}: expected the nine numbers of a camera matrix, found other text ({error})"
        ) from error
    if len(numbers) != 9 or min(numbers[0], numbers[4]) <= 0:
        raise DataError(
            f"{path}: expected the nine numbers of a camera matrix with positive focal lengths, found {numbers}"
        )
    return np.array(numbers).reshape(3, 3)


def _camera(frame: Frame) -> npt.NDArray[np.float64]:
    if frame.intrinsics is not None:
        return camera_matrix(*frame.intrinsics)
    if frame.intrinsics_file is not None:
        return read_camera(frame.intrinsics_file)
    unknown = np.full((3, 3), np.nan)
    unknown[2] = 0.0, 0.0, 1.0
    return unknown


def _common_folder(frames: Sequence[Frame]) -> Path:
    folders = {frame.image.parent for frame in frames}
    return next(up for up in frames[0].image.parents if all(folder.is_relative_to(up) for folder in folders))
