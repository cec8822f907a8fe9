"""``nyu_depth_v2_labeled.mat`` as a source of the files that the BTS family reads.

The file is HDF5 (MATLAB 7.3) of 1,449 images with ``images`` (1449, 3, 640, 480) uint8, ``depths`` (in-painted) and
``rawDepths`` (0 = not measured), both (1449, 640, 480) float32 metres: columns before rows, as MATLAB stores them.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sa2depth.data.prepare.members import Accept, Member, Reader
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import ConfigError, DataError

LABELLED_TABLES = {"train": "nyu_v2_labelled_train_795", "test": "nyu_v2_test_654"}
StoredDepth = Literal["raw", "filled"]

IMAGES = 1449
DATASETS = {"raw": "rawDepths", "filled": "depths"}
SHAPES = {
    "images": (IMAGES, 3, 640, 480),
    "depths": (IMAGES, 640, 480),
    "rawDepths": (IMAGES, 640, 480),
}

_FRAME = slice(7, 474), slice(7, 632)
# Rows and columns inside the white frame that the labelled images have; BTS's files are black outside.
_VERSION = 1
# Raise this when the generated files change: those of an older version are then made again.
_IMAGE_BYTES, _DEPTH_BYTES = 350_000, 250_000
_MOST_AT_ONCE = 32


@dataclass(frozen=True)
class LabelledMat:
    """The .mat file (a `sa2depth.data.prepare.members.Source`).

    Attributes:
        path: the file.
        depth: ``raw`` or ``filled``.
    """

    path: Path
    depth: StoredDepth = "raw"
    kind: str = "MATLAB file"
    linked: bool = False
    sequential: bool = False

    def find(self, accept: Accept) -> Iterator[Member]:
        """See `Source`: ``official_splits/SPLIT/SCENE/rgb_%05d.jpg`` and ``sync_depth_%05d.png``.

        Raises:
            ConfigError: h5py is not installed.
            DataError: the file is damaged or a different one.
        """
        with self.open():
            pass  # fail now if it cannot be read
        frames = [
            (number, f"official_splits/{split}/{scene}")
            for split, table in LABELLED_TABLES.items()
            for scene, number in read_table(table)
        ]
        for number, folder in sorted(frames):
            kinds = (
                (f"rgb_{number:05d}.jpg", "images", _IMAGE_BYTES),
                (f"sync_depth_{number:05d}.png", DATASETS[self.depth], _DEPTH_BYTES),
            )
            for file, dataset, size in kinds:
                target = accept(f"{folder}/{file}")
                if target is not None:
                    mark = mark_of(dataset, number).encode()
                    yield Member(f"{dataset}[{number}]", target, size, mark=mark, handle=(dataset, number))

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See `Source`."""
        try:
            h5py: Any = import_module("h5py")
        except ImportError as error:
            raise ConfigError(
                f"{self.path}: reading MATLAB files needs h5py: pip install 'sa2depth[data]'"
            ) from error
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(
                f"{self.path}: expected nyu_depth_v2_labeled.mat (HDF5, 2.8 GB), found a damaged or incomplete file or "
                f"another format ({error}). Download it again."
            ) from error
        with file:
            for name in ("images", DATASETS[self.depth]):
                found = getattr(file.get(name), "shape", None)
                if found != SHAPES[name]:
                    state = "no such entry" if found is None else f"shape {tuple(found)}"
                    raise DataError(
                        f"{self.path}: expected '{name}' of shape {SHAPES[name]}, found {state}. Is this "
                        "nyu_depth_v2_labeled.mat?"
                    )
            yield _MatReader(file, self.path)


class _MatReader:
    """Encoded images of an opened file; neighbours that are stored in one chunk are read together."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file = file
        self.path = path
        self._blocks: dict[str, tuple[int, npt.NDArray[Any]]] = {}

    def open(self, member: Member) -> BinaryIO:
        dataset, number = member.handle
        stored = self._read(dataset, number)
        mark = mark_of(dataset, number)
        try:
            data = encode_image(stored, mark) if dataset == "images" else encode_depth(stored, mark)
        except DataError as error:
            raise ValueError(str(error)) from error
        return io.BytesIO(data)

    def _read(self, name: str, number: int) -> npt.NDArray[Any]:
        dataset = self.file[name]
        together = min((dataset.chunks or (1,))[0], _MOST_AT_ONCE)
        start = number // together * together
        if self._blocks.get(name, (-1, None))[0] != start:
            with _HDF5:
                self._blocks[name] = start, dataset[start : start + together]
        return self._blocks[name][1][number - start]


_HDF5 = threading.Lock()
# h5py has its own lock; this one lets other threads encode meanwhile instead of queueing in C.


def mark_of(dataset: str, number: int) -> str:
    """The mark of a generated file, a JPEG comment or PNG text: it tells raw from in-painted depth."""
    return f"nyu_depth_v2_labeled.mat {dataset}[{number}], sa2depth {_VERSION}"


def encode_image(stored: npt.NDArray[np.uint8], mark: str) -> bytes:
    """Encode a photograph as in the BTS family: black outside the frame, JPEG quality 100, no colour subsampling.

    Args:
        stored: ``(3, W, H)`` uint8, as in the file.
        mark: written as the JPEG's comment.
    """
    image = np.zeros((stored.shape[2], stored.shape[1], 3), np.uint8)
    image[_FRAME] = stored.transpose(2, 1, 0)[_FRAME]
    # OFFICIAL: BTS's script lets OpenCV write quality 95 with halved colour resolution.
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=100, subsampling=0, comment=mark.encode())
    return file.getvalue()


def encode_depth(stored: npt.NDArray[np.float32], mark: str) -> bytes:
    """Encode a depth map as 16-bit PNG in millimetres; values not measured, not finite or not positive are 0.

    Args:
        stored: ``(W, H)`` metres, as in the file.
        mark: written as the PNG's text ``Source``.

    Raises:
        DataError: a depth does not fit in 16 bits.
    """
    depth = stored.T.astype(np.float64)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)
    # OFFICIAL: BTS's script truncates, which is half a millimetre too near on average.
    millimetres = np.rint(depth * 1000)
    if millimetres.max(initial=0) > np.iinfo(np.uint16).max:
        raise DataError(f"expected metres up to 65.535, found {depth.max():g}")
    text = PngInfo()
    text.add_text("Source", mark)
    file = io.BytesIO()
    Image.fromarray(millimetres.astype(np.uint16)).save(file, "PNG", pnginfo=text)
    return file.getvalue()
