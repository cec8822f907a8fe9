"""Decoders take a pyramid and return a refined one of the same sizes and channels, both fine to coarse."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.nn import FlexibleAttention, GatedFeedForward, PositionConv, SelectiveAttentionBlock, Upsample
from sa2depth.nn.recompute import run_layer

OFFSET_KERNELS = (9, 7, 5, 3)
OFFSET_STRIDES = (8, 4, 2, 1)


class _TopDown(nn.Module):
    """Refine the coarsest level, then fuse each result into the next finer level and refine that.

    Args:
        channels: channels of each level, fine to coarse.
        blocks: a module for each level that refines it, fine to coarse.

    Attributes:
        gradient_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
    """

    gradient_checkpointing = False

    def __init__(self, channels: list[int], blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsamples = nn.ModuleList(Upsample(coarse, fine) for fine, coarse in pairwise(channels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels ``(B, C_i, H_i, W_i)``, fine to coarse, to levels of the same shapes.

        Raises:
            ShapeError: if their number is not the decoder's, or a level does not have twice the sides of the next.
        """
        _check_levels(features, len(self.blocks))
        levels = [self._refine(-1, features[-1])]
        for level in reversed(range(len(features) - 1)):
            fused = self.upsamples[level](levels[0], features[level])
            levels.insert(0, self._refine(level, fused))
        return levels

    def _refine(self, level: int, x: Tensor) -> Tensor:
        return run_layer(self.blocks[level], x, again=self.gradient_checkpointing)


def _check_levels(features: list[Tensor], count: int) -> None:
    sizes = [tuple(level.shape[2:]) for level in features]
    doubled = all((2 * h, 2 * w) == fine for fine, (h, w) in pairwise(sizes))
    if len(sizes) != count or not doubled:
        raise ShapeError(
            f"the encoder gave the decoder {len(sizes)} maps of {', '.join('x'.join(map(str, s)) for s in sizes)}: it "
            f"takes {count}, from fine to coarse, each with twice the sides of the next. If the encoder does so for "
            "some image sizes only, set its stride_multiple accordingly"
        )


class SelectiveAttentionDecoder(_TopDown):
    """The paper's decoder: a block of position, attention and feed-forward at each of four levels.

    Args:
        channels: channels of the four levels, fine to coarse, each a multiple of ``dim_head``; with fewer levels, the
            finest ones are missing.
        dim_head: channels of an attention head.
        attention: ``(channels, dim_head, kernel, stride)`` of a level to a module; an offset network of that kernel
            and stride brings the level to the grid of the coarsest one.
        feed_forward: ``channels`` to a module.
        position: ``channels`` to a module; None leaves it out.

    Raises:
        ConfigError: if there are more than four levels, or ``dim_head`` does not divide the channels.
    """

    def __init__(
        self,
        channels: list[int],
        dim_head: int = 64,
        attention: Callable[..., nn.Module] = FlexibleAttention,
        feed_forward: Callable[[int], nn.Module] = GatedFeedForward,
        position: Callable[[int], nn.Module] | None = PositionConv,
    ) -> None:
        most = len(OFFSET_KERNELS)
        if len(channels) > most:
            raise ConfigError(
                f"the selective-attention decoder has at most {most} levels, and the encoder has {len(channels)}, with "
                f"channels {list(channels)}: choose an encoder with a feature pyramid, or decoder=conv"
            )
        # the coarsest level always has stride 1: all of its pixels are keys
        kernels, strides = (values[most - len(channels) :] for values in (OFFSET_KERNELS, OFFSET_STRIDES))
        blocks: list[nn.Module] = [
            SelectiveAttentionBlock(level, dim_head, kernel, stride, attention, feed_forward, position)
            for level, kernel, stride in zip(channels, kernels, strides, strict=True)
        ]
        super().__init__(channels, blocks)


class ConvDecoder(_TopDown):
    """A plain convolutional decoder with the same interface: the baseline for tables of results.

    Args:
        channels: channels of the levels, fine to coarse.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__(channels, [ConvBlock(level) for level in channels])


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a residual.

    Args:
        channels: ``C``.
    """

    compile_unit = True
    keep_float32 = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(hidden)))
