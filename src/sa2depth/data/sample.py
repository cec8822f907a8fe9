"""What a source of images hands over: one photograph, its depth, its camera.

Everything between files (or a renderer) and tensors speaks in these; nothing here needs torch.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RawSample:
    """One image with what is known about it.

    Attributes:
        image: ``(H, W, 3)`` RGB, ``uint8`` in 0..255 as read; ``float32`` in [0, 1] after photometric
            augmentation.
        depth: ``(H, W) float32`` metres along the optical axis, 0 where nothing was measured; None without
            ground truth.
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
        """What this is, how many and from where: one line for the printed plan."""


@runtime_checkable
class DepthSource(Source, Protocol):
    """A source that can hand out depth alone, sooner than whole samples."""

    def depth(self, index: int) -> npt.NDArray[np.float32] | None:
        """``source[index].depth``."""


def read_depth(source: Source, index: int) -> npt.NDArray[np.float32] | None:
    """The depth of one sample, without its photograph where the source can do that (`DepthSource`)."""
    return source.depth(index) if isinstance(source, DepthSource) else source[index].depth


def camera_matrix(fx: float, fy: float, cx: float, cy: float) -> npt.NDArray[np.float64]:
    """``(3, 3)`` matrix of a pinhole camera; all four in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
