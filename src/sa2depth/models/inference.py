"""A copy of the network for inference alone: the same function in fewer operations."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sa2depth.models.encoders.internimage import DeformableConv
from sa2depth.nn import FlexibleAttention, MergesWeights, SelectiveAttentionBlock

Network = TypeVar("Network", bound=nn.Module)


def for_inference(model: Network, dtype: torch.dtype | None = None) -> Network:
    """A copy of a network that computes the same depth with fewer operations.

    Batch norms are folded into the 1x1 convolutions behind them (also through the sampling of keys, whose weights sum
    to one), and weights that layers merge from several parameters are merged once.

    Args:
        model: the network; it is left as it is.
        dtype: bfloat16 or float16 for use under autocast: weights of matrix products and dense convolutions are rounded
            once instead of at every call. Numbers that are never rounded (norms, offsets of keys, the scan) stay.

    Returns:
        The copy, in eval mode and without gradients. Its weights do not follow those of ``model``.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for module in fast.modules():
        if isinstance(module, SelectiveAttentionBlock):
            _fold_norms(module)
    for module in fast.modules():
        if isinstance(module, MergesWeights):
            # the merged kernels of ops.depthwise_conv and ops.gated_conv are taken in float32
            module.fix_merged(dtype if isinstance(module, DeformableConv) else None)
    if dtype is not None:
        _round_weights(fast, dtype)
    return fast


def _fold_norms(block: SelectiveAttentionBlock) -> None:
    attention = block.attention
    _fold(block.norm1, [attention.query, attention.key_value])
    _fold(block.norm2, [block.feed_forward.expand])
    block.norm1, block.norm2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]


@torch.no_grad()
def _fold(norm: nn.Module, convs: list[nn.Conv2d]) -> None:
    """Make 1x1 convolutions of a batch norm's result take its input instead."""
    if isinstance(norm, nn.Identity):
        return  # the network is such a copy itself
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    for conv in convs:
        assert conv.bias is not None
        conv.bias += conv.weight.flatten(1) @ shift
        conv.weight *= scale[:, None, None]


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    exact = {
        id(part)
        for module in model.modules()
        if isinstance(module, FlexibleAttention)
        for part in module.offset.modules()
    }
    for module in model.modules():
        dense = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if dense and id(module) not in exact:
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(_rounded(parameter, dtype), requires_grad=False))


def _rounded(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.detach().to(dtype)
