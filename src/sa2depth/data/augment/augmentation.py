"""Random changes of a training sample, with the semantics of the released loader.

Image and depth always move together; depth is only ever sampled at the nearest pixel, so that no depth is
invented. The geometry works on 8-bit images, as the released loader does; float32 begins with the photometric
step.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge, Interval

from sa2depth.data.augment.albumentations_offline import A
from sa2depth.data.augment.cut_flip import cut_flip
from sa2depth.data.augment.photometric import PhotometricJitter, Probability
from sa2depth.data.sample import RawSample
from sa2depth.errors import DataError
from sa2depth.values import checked

Pixels = Annotated[int, Ge(1)]


class Augmentation:
    """The changes of a training sample, in this order; every part is off by default.

    Args:
        border: fixed handling of a border without depth, e.g. `sa2depth.data.augment.borders.NyuBorder`; None: none.
        rotation: largest angle in degrees, in [0, 90); each image turns about its centre by an angle drawn
            from [-rotation, rotation]. Corners that come from outside are black and have no depth.
        crop: ``(height, width)`` in pixels of a window at a random place; None: the whole image.
        horizontal_flip: probability of mirroring left and right.
        photometric: probability that gamma, brightness and color are changed, together.
        gamma: interval of the exponent, see `sa2depth.data.augment.photometric.PhotometricJitter`; None: no
            change.
        brightness: interval of the common factor; None: no change.
        color: interval of the factor of each channel; None: no change.
        cut_flip: probability of `sa2depth.data.augment.cut_flip.cut_flip`.

    Raises:
        ConfigError: a value is outside its range.
    """

    @checked
    def __init__(
        self,
        border: Callable[[RawSample], RawSample] | None = None,
        rotation: Annotated[float, "degrees", Interval(ge=0, lt=90)] = 0.0,
        crop: Annotated[tuple[Pixels, Pixels], "[height, width] in pixels"] | None = None,
        horizontal_flip: Probability = 0.0,
        photometric: Probability = 0.0,
        gamma: Sequence[float] | None = None,
        brightness: Sequence[float] | None = None,
        color: Sequence[float] | None = None,
        cut_flip: Probability = 0.0,
    ) -> None:
        self.border = border
        self.crop = None if crop is None else (int(crop[0]), int(crop[1]))
        self.cut_flip = cut_flip
        self.photometric = PhotometricJitter(photometric, gamma, brightness, color)
        self.geometry = _geometry(rotation, self.crop, horizontal_flip)

    def __call__(self, sample: RawSample, rng: np.random.Generator) -> RawSample:
        """Change one sample.

        Args:
            sample: one with an ``(H, W, 3) uint8`` image.
            rng: the only source of randomness: the same state gives the same result.

        Returns:
            The sample with an ``(H', W', 3) float32`` image in [0, 1] and the intrinsics of the new picture.

        Raises:
            DataError: the image is smaller than the crop, or has the wrong size for the border.
        """
        if self.border is not None:
            sample = self.border(sample)
        # OFFICIAL: an image smaller than the training size fails an assertion there that does not name it.
        height, width = sample.image.shape[:2]
        if self.crop is not None and (height < self.crop[0] or width < self.crop[1]):
            raise DataError(
                f"{sample.id}: {height}x{width} pixels are too few for augment.crop={list(self.crop)} "
                "(height, width): choose a smaller crop"
            )
        if self.geometry is not None:
            sample = self._move(sample, rng)
        if rng.random() < self.cut_flip:
            sample = cut_flip(sample, rng)
        return replace(sample, image=self.photometric(sample.image, rng))

    def _move(self, sample: RawSample, rng: np.random.Generator) -> RawSample:
        # One shared stream. Compose.set_random_seed would give every step the same stream, and so the same
        # decisions.
        self.geometry.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        # The principal point travels as a key point: shifted by crops, mirrored by flips, turned by rotations
        # (a camera that rolls). The focal lengths stay. The NaN of an unknown camera stays NaN.
        data: dict[str, Any] = {
            "image": sample.image,
            "keypoints": sample.intrinsics[None, :2, 2].astype(np.float32),
        }
        if sample.depth is not None:
            data["mask"] = sample.depth
        moved = self.geometry(**data)
        intrinsics = sample.intrinsics.copy()
        intrinsics[:2, 2] = moved["keypoints"][0]
        return replace(sample, image=moved["image"], depth=moved.get("mask"), intrinsics=intrinsics)


def _geometry(rotation: float, crop: tuple[int, int] | None, flip: float) -> Any:
    steps = []
    if rotation > 0:
        steps.append(
            A.Rotate(
                limit=(-rotation, rotation),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,
                fill=0,
                fill_mask=0,
                p=1.0,
            )
        )
    if crop is not None:
        steps.append(A.RandomCrop(height=crop[0], width=crop[1], p=1.0))
    if flip > 0:
        steps.append(A.HorizontalFlip(p=flip))
    if not steps:
        return None
    return A.Compose(steps, keypoint_params=A.KeypointParams(format="xy", remove_invisible=False))
