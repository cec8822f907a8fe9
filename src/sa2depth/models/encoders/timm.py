"""Any feature-pyramid network of timm as an encoder."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError, nearest

_STRIDES = [4, 8, 16, 32]


class TimmEncoder(nn.Module):
    """A timm backbone by name, never downloaded: weights come through ``sa2depth.weights.load_encoder``.

    Args:
        name: timm's name of the network, such as ``resnet18``.
        channels: four widths, fine to coarse, to which 1x1 convolutions bring the maps; the network's own if
            None.
        drop_path_rate: timm's stochastic depth, for networks that have it.

    Attributes:
        channels: channels of the four maps, fine to coarse.
        stride_multiple: sides of the image must be multiples of it.
        pixel_mean: RGB mean that the network was trained with.
        pixel_std: RGB standard deviation that the network was trained with.

    Raises:
        ConfigError: if timm has no such network, or it has no maps at 1/4, 1/8, 1/16 and 1/32.
    """

    stride_multiple = 32

    def __init__(self, name: str, channels: list[int] | None = None, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ConfigError(
                f"timm has no network named '{name}'; {nearest(name.split('.')[0], timm.list_models())}"
            )
        options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        backbone = _create(name, _pyramid_indices(name), options)
        self.backbone = backbone
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        own = list(backbone.feature_info.channels())
        if channels is None:
            self.channels = own
            self.projections = nn.ModuleList(nn.Identity() for _ in own)
        else:
            if len(channels) != len(own):
                raise ConfigError(f"encoder '{name}' wants {len(own)} channels, got {list(channels)}")
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


def _pyramid_indices(name: str) -> list[int]:
    """Which of the network's feature maps lie at 1/4, 1/8, 1/16 and 1/32."""
    with torch.device("meta"):
        reductions = list(_create(name, None, {}).feature_info.reduction())
    if not set(_STRIDES) <= set(reductions):
        raise ConfigError(
            f"encoder '{name}' has feature maps at strides {reductions}; "
            f"the decoder needs {_STRIDES}: choose a network with a feature pyramid"
        )
    # The last map of a stride is the deepest one.
    return [max(i for i, r in enumerate(reductions) if r == stride) for stride in _STRIDES]


def _create(name: str, indices: list[int] | None, options: dict[str, float]) -> Any:
    extra = {} if indices is None else {"out_indices": indices}
    try:
        return timm.create_model(name, pretrained=False, features_only=True, **extra, **options)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"timm cannot build '{name}' as a feature pyramid: {error}") from error
