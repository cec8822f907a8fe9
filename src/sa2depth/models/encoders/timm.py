"""Any feature-pyramid network of timm as an encoder."""

from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError, nearest

_STRIDES = [4, 8, 16, 32]
_MULTIPLES = (32, 64, 128, 224, 256, 384, 448, 512)
"""Multiples of 32 that suit windows of 7, 8, 12, 14 and 16 pixels."""


class TimmEncoder(nn.Module):
    """A timm backbone by name with random weights; ``sa2depth.weights.load_encoder`` loads pretrained ones.

    Args:
        name: timm's name of the network, such as ``resnet18``.
        channels: channels of the four maps, fine to coarse, which 1x1 convolutions produce; None keeps the
            network's own.
        drop_path_rate: timm's stochastic depth, for networks that have it.

    Attributes:
        channels: channels of the four maps, fine to coarse.
        stride_multiple: both sides of an image must be multiples of it: 32, or more for window attention.
        pixel_mean: RGB mean that the network was trained with.
        pixel_std: RGB standard deviation that the network was trained with.

    Raises:
        ConfigError: if timm has no such network, or it has no maps at 1/4, 1/8, 1/16 and 1/32, or it takes images of
            only one size, or ``channels`` has the wrong length.
    """

    compile_unit = "in parts"  # some of timm's networks have graph breaks
    keep_float32 = False

    def __init__(self, name: str, channels: list[int] | None = None, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ConfigError(
                f"timm has no network named '{name}'; {nearest(name.split('.')[0], timm.list_models())}"
            )
        shape = _shape(name)
        self.stride_multiple = shape.multiple
        options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        backbone = _create(name, shape.indices, options | shape.options)
        self.backbone = backbone
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        own = list(backbone.feature_info.channels())
        if channels is None:
            self.channels = own
            self.projections = nn.ModuleList(nn.Identity() for _ in own)
        else:
            if len(channels) != len(own):
                raise ConfigError(
                    f"encoder.channels of '{name}' must be a list of {len(own)} channels, not {list(channels)}"
                )
            self.channels = list(channels)
            self.projections = nn.ModuleList(
                nn.Conv2d(old, new, 1) for old, new in zip(own, channels, strict=True)
            )
        config = timm.get_pretrained_cfg(name)
        if config is not None:
            self.pixel_mean = tuple(config.mean)
            self.pixel_std = tuple(config.std)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image ``(B, 3, H, W)`` to four maps ``(B, C_i, H / 2**(i+2), W / 2**(i+2))``."""
        maps = self.backbone(image)
        if self.channels_last:
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        return [project(level) for project, level in zip(self.projections, maps, strict=True)]


class _Shape(NamedTuple):
    """The settings with which a timm network makes a feature pyramid."""

    indices: list[int]
    """Its feature maps at 1/4, 1/8, 1/16 and 1/32."""
    multiple: int
    """Both sides of an image must be multiples of it."""
    options: dict[str, Any]
    """Arguments of ``timm.create_model`` that let it take images of any size."""


@cache
def _shape(name: str) -> _Shape:
    """The settings of a network, found by running it on the meta device."""
    indices = _pyramid_indices(name)
    # strict_img_size=False frees window attention from one image size; only some networks have this option
    for options in ({}, {"strict_img_size": False}):
        try:
            with torch.device("meta"):
                network = _create(name, indices, options).eval()
        except ConfigError:
            continue
        for multiple in _MULTIPLES:
            if _is_pyramid(network, multiple):
                return _Shape(indices, multiple, options)
    raise ConfigError(
        f"encoder '{name}' takes images of one size only, or none whose sides are multiples of one of "
        f"{list(_MULTIPLES)}; choose an encoder that takes images of any size, such as convnext_tiny, resnet50 or "
        "swin_tiny_patch4_window7_224"
    )


def _is_pyramid(network: nn.Module, multiple: int) -> bool:
    """True if an image of ``multiple`` x ``2 * multiple`` gives maps at 1/4, 1/8, 1/16 and 1/32."""
    sides = multiple, 2 * multiple
    try:
        with torch.no_grad():
            maps = network(torch.empty(1, 3, *sides, device="meta"))
    except (AssertionError, RuntimeError, ValueError):
        return False
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    sizes = [tuple(m.shape[1:3] if last else m.shape[2:]) for m in maps]
    return sizes == [tuple(side // stride for side in sides) for stride in _STRIDES]


def _pyramid_indices(name: str) -> list[int]:
    """Indices of the network's feature maps at 1/4, 1/8, 1/16 and 1/32."""
    with torch.device("meta"):
        reductions = list(_create(name, None, {}).feature_info.reduction())
    if not set(_STRIDES) <= set(reductions):
        raise ConfigError(
            f"encoder '{name}' has feature maps at strides {reductions}; "
            f"the decoder needs {_STRIDES}: choose a network with a feature pyramid"
        )
    # The last map of a stride is the deepest one.
    return [max(i for i, r in enumerate(reductions) if r == stride) for stride in _STRIDES]


def _create(name: str, indices: list[int] | None, options: dict[str, Any]) -> Any:
    extra = {} if indices is None else {"out_indices": indices}
    try:
        return timm.create_model(name, pretrained=False, features_only=True, **extra, **options)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"timm cannot build '{name}' as a feature pyramid: {error}") from error
