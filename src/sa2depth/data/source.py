"""Sources that read files: frames in, samples out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sa2depth.data.frame import Frame, depth_of_frame, read_frame
from sa2depth.data.io.images import photograph_size
from sa2depth.data.listing import Listing
from sa2depth.data.sample import RawSample
from sa2depth.data.splits.selection import Part, handful, hold_out
from sa2depth.errors import DataError

Prepare = Callable[[RawSample], RawSample]

_MISSING_ALLOWED: ContextVar[bool] = ContextVar("missing_files_allowed", default=False)


class FileSource:
    """Samples read from files (a `sa2depth.data.sample.Source`).

    Args:
        frames: the frames to read; at least one.
        title: their name in the printed plan.
        available: number of frames that they were chosen from; None: all are used.
        without_truth: number of images of the split that were left out because the data set has no ground
            truth for them; a protocol states how many it expects.
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
            DataError: a file is broken, or image and depth differ in size; the message names the file.
        """
        sample = read_frame(self.frames[index])
        return sample if self.prepare is None else self.prepare(sample)

    def depth(self, index: int) -> npt.NDArray[np.float32] | None:
        """Depth of one sample; only the size of its photograph is read, unless `prepare` needs all of it.

        Raises:
            DataError: as for the whole sample.
        """
        frame = self.frames[index]
        if self._changes_samples:
            return self[index].depth
        return None if frame.depth is None else depth_of_frame(frame, photograph_size(frame.image))

    def fingerprint(self, indices: Iterable[int]) -> str | None:
        """A digest of names, sizes and times of the samples' files; it changes when their depth may have changed.

        Returns:
            A hexadecimal number; None if changes cannot be noticed (`prepare`, decoders without a repr of their own,
            inaccessible files).
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
        """True if the depth may differ from that in the files."""
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
    """The chosen frames of a listing as a source; their files must exist.

    Args:
        listing: the split to choose from.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most this many images, evenly spread.
        ids: use exactly these images.
        keep_without_truth: keep images without ground truth (for prediction); otherwise they are left out and
            counted.
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
    """Allow sources made inside to lack files, so that `sa2depth data check` can report what is missing."""
    token = _MISSING_ALLOWED.set(True)
    try:
        yield
    finally:
        _MISSING_ALLOWED.reset(token)


def _common_folder(frames: Sequence[Frame]) -> Path:
    folders = {frame.image.parent for frame in frames}
    return next(up for up in frames[0].image.parents if all(folder.is_relative_to(up) for folder in folders))
