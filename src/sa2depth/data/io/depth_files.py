"""Depth files: one reader for each way in which a data set stores depth.

A decoder turns a file into metres; a frame carries the one that fits its file (`sa2depth.data.frame`). 16-bit
PNGs go through OpenCV: Pillow opens them as ``I`` or ``I;16`` depending on its version, OpenCV always as ``uint16``.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from sa2depth.errors import ConfigError, DataError, UserError

DepthMap = npt.NDArray[np.float32]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class DepthDecoder(Protocol):
    """Reads one kind of depth file. Small and picklable: every frame holds one."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files it reads, for searching folders."""

    def __call__(self, path: Path, size: tuple[int, int]) -> DepthMap:
        """Read a file.

        Args:
            path: the depth file.
            size: ``(H, W)`` of the photograph; only decoders of data without a size of its own use it.

        Returns:
            ``(H, W) float32`` metres, 0 = not measured.

        Raises:
            DataError: the file is absent, broken or of another kind; the message names it.
        """


@dataclass(frozen=True)
class PngDepth:
    """16-bit single-channel PNG.

    Attributes:
        units_per_metre: value that stands for one metre (NYU v2: 1000, KITTI: 256, TUM: 5000).

    Raises:
        ConfigError: the scale is not a positive number.
    """

    units_per_metre: float
    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def __post_init__(self) -> None:
        check_scale(self.units_per_metre)

    def __call__(self, path: Path, size: tuple[int, int]) -> DepthMap:
        """``raw / units_per_metre``; see `DepthDecoder`."""
        raw = read_png16(path, f"{self.units_per_metre:g} units per metre")
        return raw.astype(np.float32) / np.float32(self.units_per_metre)


@dataclass(frozen=True)
class RotatedPngDepth:
    """16-bit PNG of SUN RGB-D: millimetres, their bits rotated left by three.

    The data set's toolbox also caps the result at 8 m; here the protocol sets the range.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def __call__(self, path: Path, size: tuple[int, int]) -> DepthMap:
        """Rotated back and divided by 1000; see `DepthDecoder`."""
        raw = read_png16(path, "millimetres, rotated by 3 bits")
        return ((raw >> 3) | (raw << 13)).astype(np.float32) / np.float32(1000)


@dataclass(frozen=True)
class ArrayDepth:
    """NumPy array in a ``.npy`` or ``.npz`` file, never unpickled.

    Attributes:
        units_per_metre: value that stands for one metre.
        key: name of the array in an ``.npz`` file; None: the only array in it.

    Raises:
        ConfigError: the scale is not a positive number.
    """

    units_per_metre: float = 1.0
    key: str | None = None
    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".npz")

    def __post_init__(self) -> None:
        check_scale(self.units_per_metre)

    def __call__(self, path: Path, size: tuple[int, int]) -> DepthMap:
        """The array in metres; negative and non-finite values count as not measured. See `DepthDecoder`."""
        array = np.squeeze(self._load(path))
        if array.ndim == 1 and array.size == size[0] * size[1]:  # one row or one column
            array = array.reshape(size)
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise DataError(
                f"{path}: expected an (H, W) array of numbers, found {array.dtype} of shape {tuple(array.shape)}"
            )
        metres = np.asarray(array, np.float32) / np.float32(self.units_per_metre)
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))

    def _load(self, path: Path) -> npt.NDArray[Any]:
        try:
            loaded = np.load(path, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return np.asarray(loaded)
            with loaded:
                names = loaded.files
                key = self.key or (names[0] if len(names) == 1 else None)
                if key not in names:
                    wanted = (
                        "one array (or set key to choose one of several)"
                        if self.key is None
                        else f"an array '{self.key}'"
                    )
                    raise DataError(f"{path}: expected {wanted}, found {', '.join(names) or 'none'}")
                return np.asarray(loaded[key])
        except UserError:
            raise
        except OSError as error:
            raise DataError(f"{path}: cannot read this depth map ({error.strerror or error})") from error
        except (
            Exception
        ) as error:  # BadZipFile, zlib.error, MemoryError ...: a damaged file may raise anything
            raise DataError(
                f"{path}: expected a NumPy file, found something else or a damaged one "
                f"({str(error) or type(error).__name__}). Download it again."
            ) from error


@dataclass(frozen=True)
class Limited:
    """Another decoder whose values outside a range become 0.

    Attributes:
        decoder: reads the file.
        min_depth: metres; smaller values become 0 (not measured).
        max_depth: metres; larger values become 0.
    """

    decoder: DepthDecoder
    min_depth: float = 0.0
    max_depth: float = math.inf

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the decoder."""
        return self.decoder.suffixes

    def __call__(self, path: Path, size: tuple[int, int]) -> DepthMap:
        """See `DepthDecoder`."""
        depth = self.decoder(path, size)
        return np.where((depth >= self.min_depth) & (depth <= self.max_depth), depth, np.float32(0))


def read_png16(path: Path, unit: str = "depth") -> npt.NDArray[np.uint16]:
    """Read the raw values ``(H, W)`` of a 16-bit single-channel PNG.

    Args:
        path: the file.
        unit: meaning of the values, for the error message.

    Raises:
        DataError: the file is absent, broken, or another kind of image.
    """
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or "there is not enough memory for it"
        raise DataError(f"{path}: cannot read this depth map ({why})") from error
    wanted = f"{path}: expected a 16-bit single-channel PNG ({unit})"
    if not data.startswith(_PNG_SIGNATURE):
        raise DataError(f"{wanted}, found another format. Depth must never pass through JPEG.")
    raw = _decode(data)
    if raw is None:
        raise DataError(f"{wanted}, found a PNG that is damaged or ends early. Download this file again.")
    if raw.ndim != 2 or raw.dtype != np.uint16:
        channels = 1 if raw.ndim == 2 else raw.shape[2]
        raise DataError(
            f"{wanted}, found {channels} channel(s) of {raw.dtype}. Is this a coloured picture of depth?"
        )
    return raw


def check_scale(units_per_metre: float) -> None:
    """Refuse a depth scale that is not a positive number.

    Raises:
        ConfigError: the message gives the number.
    """
    if not (math.isfinite(units_per_metre) and units_per_metre > 0):
        raise ConfigError(f"a depth scale must be a positive number per metre, not {units_per_metre}")


def _decode(data: bytes) -> npt.NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


MILLIMETRE_PNG = PngDepth(1000.0)
"""Most indoor data sets use it."""
