"""The predictor that every model must beat: each pixel's median depth over the training set, whatever the image.

No other prediction that ignores the image has a smaller mean absolute error.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.errors import DataError, ShapeError
from sa2depth.masks import valid_mask
from sa2depth.metrics.any_size import resize_map
from sa2depth.metrics.holes import fill_from_nearest

_BLOCK_VALUES = 1 << 22  # 16 MiB of float32; three such blocks are in memory at a time


class MedianDepthMap:
    """Per-pixel median of training depth maps.

    The median is exact. While fitting, the maps lie as float32 in a temporary file (795 maps of 480x640 take 1 GB of
    disk; each map is read once) and are sorted in blocks of rows, so that any number of maps needs less than 100 MB of
    memory. NumPy does all of it in one thread, because a map is too little work for 32 threads.

    A pixel that no map measures (borders; three of four pixels of the rebuilt NYU labelled set) takes the median of
    the nearest measured pixel, which is fairer to the baseline than one number for all of them.

    Args:
        min_depth: Metres; this depth and smaller ones are ignored (0 = not measured).
        max_depth: Metres; this depth and larger ones are ignored.
    """

    def __init__(self, min_depth: float = 0.0, max_depth: float = math.inf) -> None:
        self.min_depth = min_depth
        self.max_depth = max_depth
        self._map: NDArray[np.float32] | None = None

    def fit(self, maps: Iterable[Any]) -> "MedianDepthMap":
        """Learn the map.

        Args:
            maps: ``(H,W)`` depth arrays in metres, all of one size, or samples with such a ``depth`` (a data
                source).

        Returns:
            This object.

        Raises:
            DataError: There is no map, a sample has no depth, or no map has a valid pixel.
            ShapeError: The maps differ in size.
        """
        with tempfile.TemporaryFile() as file:
            count, shape = 0, (0, 0)
            for item in _items(maps):
                depth = self._masked(item, count)
                if count and depth.shape != shape:
                    raise ShapeError(f"depth map {count} is {depth.shape}, but those before it are {shape}")
                shape = (depth.shape[0], depth.shape[1])
                file.write(depth.tobytes())
                count += 1
            if not count:
                raise DataError("MedianDepthMap.fit was given no depth map")
            self._map = _median(file, count, *shape)
        return self

    @classmethod
    def restored(
        cls, fitted: NDArray[np.float32], min_depth: float = 0.0, max_depth: float = math.inf
    ) -> "MedianDepthMap":
        """Make a predictor from a map that `fit` learned earlier under the same limits and `predict` returned.

        Args:
            fitted: ``(H,W)`` metres.
            min_depth: See the class.
            max_depth: See the class.

        Raises:
            ShapeError: ``fitted`` is not an ``(H,W)`` float32 map of finite numbers.
        """
        if fitted.ndim != 2 or fitted.dtype != np.float32 or not np.isfinite(fitted).all():
            raise ShapeError(
                f"expected a finite float32 map (H, W), got {fitted.dtype} of shape {fitted.shape}"
            )
        median = cls(min_depth, max_depth)
        median._map = fitted
        return median

    def predict(self, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """The map, which is the same for every image.

        Args:
            shape: ``(H, W)`` to resize to (bilinear; the map has no holes), or None for the size of the
                training maps.

        Returns:
            ``(H,W)`` metres, a copy.

        Raises:
            DataError: ``fit`` was not called.
        """
        if self._map is None:
            raise DataError("MedianDepthMap.predict needs a fitted map: call fit first")
        if shape is None or tuple(shape) == self._map.shape:
            return self._map.copy()
        return resize_map(torch.from_numpy(self._map)[None, None], (shape[0], shape[1]))[0, 0].numpy()

    def _masked(self, item: Any, place: int) -> NDArray[np.float32]:
        """Depth of one sample, infinite where invalid."""
        depth = getattr(item, "depth", item)
        if depth is None:
            raise DataError(
                f"sample {getattr(item, 'id', place)} has no depth: give training samples with ground truth"
            )
        values = np.ascontiguousarray(np.squeeze(depth), dtype=np.float32)
        if values.ndim != 2:
            raise ShapeError(f"depth map {place} must be (H, W), got {values.shape}")
        return np.where(valid_mask(values, self.min_depth, self.max_depth), values, np.float32(np.inf))


def _items(maps: Any) -> Iterator[Any]:
    # A data source has a length and items, but may not raise the IndexError that ends plain iteration.
    if hasattr(maps, "__getitem__") and hasattr(maps, "__len__"):
        return (maps[i] for i in range(len(maps)))
    return iter(maps)


def _median(file: IO[bytes], count: int, height: int, width: int) -> NDArray[np.float32]:
    """``(H,W)`` medians of a file of ``(n,H,W)`` float32.

    Infinity means invalid; pixels that are never valid copy a neighbour.
    """
    out = np.full((height, width), np.inf, np.float32)
    step = max(1, _BLOCK_VALUES // (count * width))
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        block = _read_rows(file, count, height, width, rows)
        known = np.isfinite(block).sum(axis=0, dtype=np.int32)
        seen = known > 0
        out[rows].reshape(-1)[seen] = _medians(block[:, seen], known[seen])
    holes = ~np.isfinite(out)
    if holes.all():
        raise DataError("MedianDepthMap.fit: no valid depth in any map; check the depth scale and the limits")
    return fill_from_nearest(out, ~holes)


def _medians(block: NDArray[np.float32], known: NDArray[np.int32]) -> NDArray[np.float32]:
    """``(P,)`` medians of the columns of ``(n,P)``; ``known (P,)`` values of each, at least 1, are finite."""
    if not block.size:
        return np.empty(0, np.float32)
    columns = cv2.transpose(block).reshape(block.shape[1], -1)  # several times as fast as NumPy's transpose
    columns.sort(axis=-1)  # the invalid ones end up last
    lower, upper = (
        np.take_along_axis(columns, at[:, None], axis=-1)[:, 0] for at in ((known - 1) // 2, known // 2)
    )
    return np.asarray(0.5 * (lower + upper))


def _read_rows(file: IO[bytes], count: int, height: int, width: int, rows: slice) -> NDArray[np.float32]:
    """``(n,P)``: a few rows of every map. They are not memory-mapped: mapped pages count as memory in use."""
    pixels = (rows.stop - rows.start) * width
    block = np.empty((count, pixels), np.float32)
    for place in range(count):
        file.seek((place * height + rows.start) * width * 4)
        block[place] = np.frombuffer(file.read(pixels * 4), np.float32)
    return block
