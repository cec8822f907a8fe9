"""Random gamma, brightness and colour, as in BTS and its descendants (``augment_image``).

albumentations differs: its brightness adds, and each of its steps clips to [0, 1] where the released code
clips once at the end. On 8-bit pixels the three steps are one table of 256 values per channel: exact, and fifty
times faster.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from sa2depth.errors import ConfigError
from sa2depth.values import checked

Probability = Annotated[float, "a probability", Interval(ge=0, le=1)]

_SHARES_OF_255 = np.arange(256, dtype=np.float32) / np.float32(255)


class PhotometricJitter:
    """``clip(image ** gamma * brightness * color[c], 0, 1)``, all three drawn again for each image.

    Args:
        probability: chance that an image is changed, in [0, 1]; the three always come together.
        gamma: interval of the exponent, above 0; 1 changes nothing.
        brightness: interval of the common factor, above 0.
        color: interval of the factor of each channel, drawn three times, above 0.
    """

    @checked
    def __init__(
        self,
        probability: Probability,
        gamma: Sequence[float] | None = None,
        brightness: Sequence[float] | None = None,
        color: Sequence[float] | None = None,
    ) -> None:
        self.probability = probability
        self.gamma = _interval("gamma", gamma)
        self.brightness = _interval("brightness", brightness)
        self.color = _interval("color", color)

    def __call__(self, image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """``(H, W, 3) uint8`` to ``(H, W, 3) float32`` in [0, 1], changed or not."""
        table = np.repeat(np.linspace(0.0, 1.0, 256)[:, None], 3, axis=1)
        if rng.random() < self.probability:
            table = (
                table ** rng.uniform(*self.gamma)
                * rng.uniform(*self.brightness)
                * rng.uniform(*self.color, size=3)
            )
        return apply_table(image, table.clip(0.0, 1.0))


def to_float(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``uint8`` image to ``float32`` in [0, 1]; a float image stays as it is."""
    if image.dtype == np.uint8:
        return apply_table(image, np.repeat(_SHARES_OF_255[:, None], image.shape[2], axis=1))
    return image.astype(np.float32, copy=False)


def apply_table(image: npt.NDArray[np.uint8], table: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Look every pixel of ``(H, W, C)`` up in ``table (256, C)``.

    The result is ``(H, W, C)`` but lies in memory channel by channel, as a network expects it: turning it into a
    tensor then copies nothing, and one channel at a time is faster than three together.
    """
    planes = np.empty((image.shape[2], *image.shape[:2]), np.float32)
    columns = np.ascontiguousarray(table.T, np.float32)
    for column, plane, looked_up in zip(columns, cv2.split(image), planes, strict=True):
        cv2.LUT(plane, column, dst=looked_up)
    return planes.transpose(1, 2, 0)


def _interval(name: str, value: Sequence[float] | None) -> tuple[float, float]:
    if value is None:
        return (1.0, 1.0)
    if len(value) != 2 or not 0.0 < value[0] <= value[1]:
        raise ConfigError(f"augment.{name}={list(value)}: expected [lowest, highest] factor, both above 0")
    return (float(value[0]), float(value[1]))
