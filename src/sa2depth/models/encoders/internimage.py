"""InternImage: a convolutional backbone built on DCNv3 (Wang et al., CVPR 2023), as a feature pyramid."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn

from sa2depth.errors import ConfigError
from sa2depth.nn.drop_path import DropPath
from sa2depth.nn.layout import from_tokens
from sa2depth.nn.merged import MergesWeights
from sa2depth.nn.norm import TokenNorm
from sa2depth.nn.recompute import run_layer
from sa2depth.ops import dcnv3_fused, depthwise_conv, layer_norm

_EPS = 1e-6
_POINTS = 9
_ROW_MULTIPLE = 8  # 16 bytes of half precision


class InternImage(nn.Module):
    """The backbone without its classification head; it returns each stage's map before downsampling.

    Args:
        channels: channels of the first stage; they double at each stage.
        depths: layers of each of the four stages.
        groups: DCNv3 groups of each stage; each divides its stage's channels.
        post_norm: normalise after each branch instead of before it.
        layer_scale: initial value of the learnt factor of each branch; None for no factor.
        offset_scale: factor of the DCNv3 offsets.
        drop_path_rate: probability of dropping a branch; grows linearly from 0 at the first layer to this value at
            the last one.
        mlp_ratio: hidden channels of the MLP per channel.

    Attributes:
        channels: channels of the four maps, fine to coarse.
        stride_multiple: both sides of an image must be multiples of it.
        gradient_checkpointing: recompute layers in the backward pass instead of keeping their activations.

    Raises:
        ConfigError: if there are not four depths and four groups, or the groups do not divide the channels.
    """

    stride_multiple = 32
    gradient_checkpointing = False

    def __init__(
        self,
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        post_norm: bool = False,
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        drop_path_rate: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.channels = [channels * 2**stage for stage in range(4)]
        if (
            len(depths) != 4
            or len(groups) != 4
            or any(c % g for c, g in zip(self.channels, groups, strict=True))
        ):
            raise ConfigError(
                f"InternImage takes four depths and four groups that divide its channels {self.channels}, "
                f"not depths {list(depths)} and groups {list(groups)}"
            )
        total = sum(depths)
        rates = [
            drop_path_rate * layer / max(total - 1, 1) if drop_path_rate else None for layer in range(total)
        ]
        self.stem = Stem(channels)
        self.stages = nn.ModuleList()
        for index, (depth, stage_groups) in enumerate(zip(depths, groups, strict=True)):
            blocks = [
                Layer(
                    self.channels[index], stage_groups, post_norm, layer_scale, offset_scale, rate, mlp_ratio
                )
                for rate in rates[sum(depths[:index]) :][:depth]
            ]
            self.stages.append(Stage(self.channels[index], blocks, norm=not post_norm, downsample=index < 3))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image ``(B, 3, H, W)`` to four maps ``(B, C_i, H / 2**(i+2), W / 2**(i+2))``."""
        x = self.stem(image)
        features: list[Tensor] = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage(x, again=self.gradient_checkpointing)
            features.append(from_tokens(x))
            x = stage.downsample(x)
        return features


class Stem(nn.Module):
    """Two strided convolutions from an image to a quarter of its sides, channels last."""

    compile_unit = True
    keep_float32 = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.norm1 = TokenNorm(channels // 2, eps=_EPS)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = TokenNorm(channels, eps=_EPS)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, H/4, W/4, C)``."""
        tokens, norm = rearrange(self.conv1(image), "b c h w -> b h w c"), self.norm1
        x = layer_norm(tokens, norm.weight, norm.bias, norm.eps, gelu=True)
        x = self.conv2(rearrange(x, "b h w c -> b c h w"))
        return self.norm2(rearrange(x, "b c h w -> b h w c"))


class Downsample(nn.Module):
    """Halve the sides and double the channels."""

    compile_unit = True
    keep_float32 = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = TokenNorm(2 * channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, H/2, W/2, 2C)``."""
        return self.norm(rearrange(self.conv(rearrange(x, "b h w c -> b c h w")), "b c h w -> b h w c"))


class StageNorm(TokenNorm):
    """The norm after the layers of a stage; it has its own class because it is compiled separately."""

    compile_unit = True

    def forward(self, input: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, H, W, C)``."""
        return super().forward(input)


class Stage(nn.Module):
    """Layers of one resolution, a norm after them if they are pre-norm, and the downsampling to the next stage."""

    def __init__(self, channels: int, blocks: list["Layer"], norm: bool, downsample: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.norm = StageNorm(channels, eps=_EPS) if norm else nn.Identity()
        self.downsample = Downsample(channels) if downsample else nn.Identity()

    def forward(self, x: Tensor, *, again: bool = False) -> Tensor:
        """``(B, H, W, C)`` to ``(B, H, W, C)``, not yet downsampled; ``again`` as in :func:`run_layer`."""
        for block in self.blocks:
            x = run_layer(block, x, again=again)
        return self.norm(x)


class Layer(nn.Module):
    """DCNv3 and MLP, each a residual branch; channels last."""

    compile_unit = True

    def __init__(
        self,
        channels: int,
        groups: int,
        post_norm: bool,
        layer_scale: float | None,
        offset_scale: float,
        drop_path_rate: float | None,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = TokenNorm(channels, eps=_EPS)
        self.dcn = DeformableConv(channels, groups, offset_scale)
        self.norm2 = TokenNorm(channels, eps=_EPS)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = nn.Identity() if drop_path_rate is None else DropPath(drop_path_rate)
        self.scale1 = self.scale2 = None
        if layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.scale2 = nn.Parameter(torch.full((channels,), float(layer_scale)))

    def draw(self, x: Tensor) -> Tensor | None:
        """The random numbers ``(2, B, 1, 1, 1)`` for a call with ``x``; None if it needs none."""
        if not self.training or isinstance(self.drop_path, nn.Identity):
            return None
        return torch.rand((2, len(x), 1, 1, 1), device=x.device)

    def forward(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """``(B, H, W, C)`` to ``(B, H, W, C)``; ``drawn`` holds the numbers of :meth:`draw`, drawn here if None."""
        first, second = (None, None) if drawn is None else drawn
        x = x + self._branch(x, self.norm1, self.dcn, self.scale1, first)
        return x + self._branch(x, self.norm2, self.mlp, self.scale2, second)

    def _branch(
        self, x: Tensor, norm: nn.Module, body: nn.Module, scale: Tensor | None, drawn: Tensor | None
    ) -> Tensor:
        y = norm(body(x)) if self.post_norm else body(norm(x))
        y = y if scale is None else scale * y
        return self.drop_path(y) if drawn is None else self.drop_path(y, drawn)


class DeformableConv(MergesWeights):
    """DCNv3 with its projections; offsets and masks come from a depthwise convolution of the input.

    Args:
        channels: ``C``.
        groups: ``G``.
        offset_scale: factor of the offsets.
    """

    keep_float32 = False

    def __init__(self, channels: int, groups: int, offset_scale: float) -> None:
        super().__init__()
        self.groups = groups
        self.offset_scale = offset_scale
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = TokenNorm(channels, eps=_EPS)
        self.offset = nn.Linear(channels, groups * _POINTS * 2)
        self.mask = nn.Linear(channels, groups * _POINTS)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, H, W, C)``."""
        local = depthwise_conv(rearrange(x, "b h w c -> b c h w"), self.depthwise.weight, self.depthwise.bias)
        norm, tokens = self.norm, rearrange(local, "b c h w -> b h w c")
        local = layer_norm(tokens, norm.weight, norm.bias, norm.eps, gelu=True)
        # Under autocast, offsets are rounded to bf16, a relative error of 0.2 %; coordinates never are.
        offset_and_logits = F.linear(local, *self.merged())
        sampled = dcnv3_fused(
            self.input_proj(x), offset_and_logits, groups=self.groups, offset_scale=self.offset_scale
        )
        return self.output_proj(sampled)

    def _merge(self) -> tuple[Tensor, ...]:
        # One matrix product gives offsets and mask logits; its rows are padded to the multiple that runs fastest.
        missing = -(self.offset.out_features + self.mask.out_features) % _ROW_MULTIPLE
        weight = torch.cat((self.offset.weight, self.mask.weight))
        bias = torch.cat((self.offset.bias, self.mask.bias))
        return F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    keep_float32 = False

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        for layer in (self.fc1, self.fc2):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(x)))
