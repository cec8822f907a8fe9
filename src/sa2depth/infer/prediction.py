"""A prediction: depth in metres at the size of the input, with the network's confidence."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """Depth of one image.

    Attributes:
        depth: ``(H, W)`` float32, metres along the optical axis, at the size of the input.
        confidence: ``(H, W)`` float32 in [0, 1], higher is surer: one minus the entropy of the distribution
            over the K depth bins divided by ``log K``. It describes the shape of that distribution and is not a
            calibrated probability.
        min_depth: Nearest depth that the model can predict, metres.
        max_depth: Farthest depth that the model can predict, metres; with ``min_depth`` a fixed range for colours.
        intrinsics: ``(3, 3)`` float64 camera matrix in pixels of the input, if one was given.
        id: Name of the image: the stem of its file, or the caller's choice.
    """

    depth: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    min_depth: float
    max_depth: float
    intrinsics: npt.NDArray[np.float64] | None = None
    id: str = "image"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.depth.shape
        return height, width

    @property
    def broken_pixels(self) -> int:
        """Number of depths that are NaN or infinite; a sound model gives none."""
        return int(np.count_nonzero(~np.isfinite(self.depth)))
