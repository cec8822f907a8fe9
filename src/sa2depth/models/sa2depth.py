"""The depth model: encoder, decoder and two heads (``SADEDepth.py`` of the released code)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.nn import DepthFromBins
from sa2depth.ops.precision import at_least_float32

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DepthOutput(NamedTuple):
    """The prediction for a batch of images.

    Attributes:
        depth: ``(B, 1, H, W)`` metres, along the optical axis.
        bin_centers: ``(B, K)`` metres, ascending.
    """

    depth: Tensor
    bin_centers: Tensor


class SA2Depth(nn.Module):
    """Metric depth as the expectation over bins that the network places in each image.

    The parts are given as factories that take the encoder's channels, so that a configuration states each
    size once.

    Args:
        encoder: image ``(B, 3, H, W)`` to maps, fine to coarse, each with twice the sides of the next (usually four,
            at 1/4, 1/8, 1/16, 1/32). Its attributes are ``channels``, a list for its maps; ``stride_multiple``, which
            must divide both sides of an image (default 32); ``pixel_mean`` and ``pixel_std`` (default ImageNet's).
        decoder: channels to a module from levels to levels.
        bin_head: channels, ``min_depth`` and ``max_depth`` to a module from levels to bin centres.
        depth_head: channels to a module from levels to bin scores.
        min_depth: metres, left edge of the first bin.
        max_depth: metres, right edge of the last bin.

    Attributes:
        spec: the plain dictionary it was built from, empty if it was built by hand.
        stride_multiple: both sides of an image must be multiples of this number of pixels; taken from the encoder.

    Raises:
        ConfigError: unless ``0 <= min_depth < max_depth``, if the heads differ in their number of bins, or if the
            encoder lacks ``channels`` or has an impossible ``stride_multiple``.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: Callable[[list[int]], nn.Module],
        bin_head: Callable[..., nn.Module],
        depth_head: Callable[[list[int]], nn.Module],
        min_depth: float,
        max_depth: float,
    ) -> None:
        super().__init__()
        if not 0 <= min_depth < max_depth:
            raise ConfigError(
                f"depth range {min_depth} to {max_depth} m: min_depth must be at least 0 and below max_depth"
            )
        channels = _channels(encoder)
        self.min_depth = float(min_depth)
        self.max_depth = float(max_depth)
        self.spec: dict[str, Any] = {}
        self.stride_multiple = _multiple(encoder)
        self.encoder = encoder
        self.decoder = decoder(channels)
        self.bin_head = bin_head(channels, min_depth=self.min_depth, max_depth=self.max_depth)
        self.depth_head = depth_head(channels)
        self.depth_from_bins = DepthFromBins()
        self._check_bins()
        mean = getattr(encoder, "pixel_mean", IMAGENET_MEAN)
        std = getattr(encoder, "pixel_std", IMAGENET_STD)
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def _check_bins(self) -> None:
        counts = [getattr(head, "bins", None) for head in (self.bin_head, self.depth_head)]
        if None not in counts and counts[0] != counts[1]:
            raise ConfigError(
                f"the bin head predicts {counts[0]} bins and the depth head scores {counts[1]}: "
                "set both to the same number (options bins.bins and head.bins)"
            )

    def forward(self, image: Tensor) -> DepthOutput:
        """Predict depth.

        Args:
            image: ``(B, 3, H, W)`` RGB in [0, 1]; both sides are multiples of ``stride_multiple``.

        Returns:
            Depth ``(B, 1, H, W)`` and bin centres ``(B, K)`` in metres, at least float32.

        Raises:
            ShapeError: if the image has another shape.
        """
        logits, bin_centers = self.predict_bins(image)
        height, width = image.shape[2:]
        return DepthOutput(self.depth_from_bins(logits, bin_centers, (height, width)), bin_centers)

    def predict_bins(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Bin scores ``(B, K, H/4, W/4)`` and bin centres ``(B, K)`` in metres; see :meth:`forward`.

        The scores have the size of the encoder's finest map, which need not be a quarter of the image's.
        """
        levels = self.decoder(self.extract_features(image))
        return self.depth_head(levels), self.bin_head(levels)

    def extract_features(self, image: Tensor) -> list[Tensor]:
        """The encoder's maps, fine to coarse: usually four, ``(B, C_i, H / 2**(i+2), W / 2**(i+2))``."""
        if image.dim() != 4 or image.shape[1] != 3:
            raise ShapeError(f"the model takes images of shape (B, 3, H, W), not {tuple(image.shape)}")
        height, width = image.shape[2:]
        multiple = self.stride_multiple
        if height % multiple or width % multiple or not height or not width:
            raise ShapeError(
                f"the image is {height}x{width} (height x width), but both sides must be multiples of {multiple}: "
                "pad it, or use sa2depth.infer.Predictor, which takes any size"
            )
        normalised = (at_least_float32(image) - self.pixel_mean) / self.pixel_std
        features: list[Tensor] = self.encoder(normalised)
        return features


def _channels(encoder: nn.Module) -> list[int]:
    channels = getattr(encoder, "channels", None)
    if not isinstance(channels, Sequence) or isinstance(channels, str) or not channels:
        raise ConfigError(
            f"the encoder {type(encoder).__name__} must have an attribute channels, a list of the channels of its maps "
            f"from fine to coarse such as [64, 128, 256, 512], not {channels!r}"
        )
    return list(channels)


def _multiple(encoder: nn.Module) -> int:
    multiple = getattr(encoder, "stride_multiple", 32)
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        raise ConfigError(
            f"the encoder {type(encoder).__name__} has stride_multiple={multiple!r}: it must be a whole number of "
            "pixels, at least 1"
        )
    return multiple
