"""Image borders without usable pixels, and how training handles them.

Source: the loader of BTS and its descendants (NeWCRFs, IEBins, SA2Depth).
"""

from dataclasses import replace
from typing import Annotated, Literal, get_args

from annotated_types import Ge

from sa2depth.data.sample import RawSample
from sa2depth.errors import ConfigError, DataError
from sa2depth.values import checked

BorderMode = Literal["mask", "crop"]


class NyuBorder:
    """The border of a 480x640 NYU v2 image, where registration left no depth.

    It is everything but rows 45..471 and columns 43..607.

    Args:
        mode: ``mask`` removes the depth there and keeps the image, as the released code does when it trains
            on 480x640; ``crop`` cuts image and depth to 427x565, as it does for smaller training sizes.
    """

    SIZE = (480, 640)
    ROWS = slice(45, 472)
    COLUMNS = slice(43, 608)

    # OFFICIAL: the released code decides by input_height == 480; here the choice has a name.
    def __init__(self, mode: BorderMode = "mask") -> None:
        if mode not in get_args(BorderMode):
            raise ConfigError(
                f"border mode {mode!r}: choose one of {', '.join(get_args(BorderMode))}, or no border"
            )
        self.mode = mode

    def __call__(self, sample: RawSample) -> RawSample:
        """Mask or crop one sample; cropping moves the principal point.

        Raises:
            DataError: the image is not 480x640.
        """
        if sample.image.shape[:2] != self.SIZE:
            height, width = sample.image.shape[:2]
            raise DataError(
                f"{sample.id}: the NYU border is defined on 480x640 images, found {height}x{width}: "
                "set augment.border=null"
            )
        if self.mode == "crop":
            intrinsics = sample.intrinsics.copy()
            intrinsics[:2, 2] -= (self.COLUMNS.start, self.ROWS.start)
            depth = None if sample.depth is None else sample.depth[self.ROWS, self.COLUMNS]
            return replace(
                sample, image=sample.image[self.ROWS, self.COLUMNS], depth=depth, intrinsics=intrinsics
            )
        if sample.depth is None:
            return sample
        inside = sample.depth[self.ROWS, self.COLUMNS]
        depth = sample.depth * 0
        depth[self.ROWS, self.COLUMNS] = inside
        return replace(sample, depth=depth)


class BottomCentre:
    """The window at the bottom centre of an image: the "kb crop" of the KITTI benchmark.

    The scanner sees nothing above it, and images of different recording days get one size.

    Args:
        height: height of the window in pixels.
        width: width of the window in pixels.

    Raises:
        ConfigError: a size is below 1.
    """

    @checked
    def __init__(self, height: Annotated[int, Ge(1)] = 352, width: Annotated[int, Ge(1)] = 1216) -> None:
        self.height, self.width = height, width

    def __call__(self, sample: RawSample) -> RawSample:
        """Cut one sample; the principal point moves with the corner.

        Raises:
            DataError: the image is smaller than the window.
        """
        height, width = sample.image.shape[:2]
        if height < self.height or width < self.width:
            # OFFICIAL: a negative offset counts from the other end there, which leaves 2 rows of a lower image.
            raise DataError(
                f"{sample.id}: {height}x{width} pixels are too few for the bottom-centre window of "
                f"{self.height}x{self.width}: set augment.border=null, or a smaller augment.border.height and width"
            )
        top, left = height - self.height, (width - self.width) // 2
        window = slice(top, height), slice(left, left + self.width)
        intrinsics = sample.intrinsics.copy()
        intrinsics[:2, 2] -= (left, top)
        depth = None if sample.depth is None else sample.depth[window]
        return replace(sample, image=sample.image[window], depth=depth, intrinsics=intrinsics)
