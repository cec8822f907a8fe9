"""A sample as a source returns it: one photograph, its depth, its camera.

All code between files (or a renderer) and tensors uses samples; nothing here needs torch.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RawSample:
    """One image with its depth and camera.

    Attributes:
        image: ``(H, W, 3)`` RGB, ``uint8`` in 0..255 as read; ``float32`` in [0, 1] after photometric
            augmentation.
        depth: ``(H, W) float32`` metres along the optical axis, 0 = not measured; None without ground truth.
            It may have fewer pixels than the image (`sa2depth.depth_size`); after `full_depth` it has as many.
        intrinsics: ``(3, 3) float64`` camera matrix in pixels, the centre of the top-left pixel being (0, 0).
        id: name of the image, unique among all sources of a data set.
    """

    image: npt.NDArray[Any]
    depth: npt.NDArray[np.float32] | None
    intrinsics: npt.NDArray[np.float64]
    id: str


@runtime_checkable
class Source(Protocol):
    """A finite, ordered collection of samples; item ``i`` is always the same one."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> RawSample:
        """Sample number ``index``."""

    def describe(self) -> str:
        """One line for the printed plan: name, number of images and folder."""


def full_depth(sample: RawSample) -> RawSample:
    """A sample whose depth has the size of its image: each pixel takes the nearest one of the map.

    No depth is invented: an interpolated one would lie between foreground and background, where nothing is.
    """
    size = sample.image.shape[:2]
    if sample.depth is None or sample.depth.shape == size:
        return sample
    return replace(sample, depth=nearest_resized(sample.depth, (size[0], size[1])))


def nearest_resized(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize ``(h, w)`` values to ``(H, W)``: each takes the value of the pixel that contains its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns[None, :]]


@runtime_checkable
class DepthSource(Source, Protocol):
    """A source that can return depth alone, faster than whole samples."""

    def depth(self, index: int) -> npt.NDArray[np.float32] | None:
        """``source[index].depth``."""


def read_depth(source: Source, index: int) -> npt.NDArray[np.float32] | None:
    """The depth of one sample; a `DepthSource` does not read the photograph for it."""
    return source.depth(index) if isinstance(source, DepthSource) else source[index].depth


def camera_matrix(fx: float, fy: float, cx: float, cy: float) -> npt.NDArray[np.float64]:
    """``(3, 3)`` matrix of a pinhole camera; all four in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
