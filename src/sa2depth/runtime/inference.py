"""A copy of a network for inference that computes the same function with fewer operations."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from sa2depth.nn import MergesWeights
from sa2depth.nn.folding import fold_norms
from sa2depth.nn.traits import owners, stated

Network = TypeVar("Network", bound=nn.Module)


def for_inference(model: Network, dtype: torch.dtype | None = None) -> Network:
    """A copy of a network that computes the same depth with fewer operations.

    Batch norms are folded into the layers after them, merged weights are computed once, and weights of matrix products
    are rounded. Each happens only if the traits of a layer allow it (`sa2depth.nn.traits`), so layers of other packages
    are unaffected.

    Args:
        model: the network; it is not changed.
        dtype: bfloat16 or float16 for use under autocast: weights of matrix products and dense convolutions are rounded
            once instead of at every call. Weights that autocast never rounds (norms, key offsets, the scan) stay.

    Returns:
        The copy, in eval mode and without gradients. Later changes of ``model`` do not reach it.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(fast)
    for module in fast.modules():
        if isinstance(module, MergesWeights):
            module.fix_merged(dtype if stated(module, "keep_float32") is False else None)
    if dtype is not None:
        _round_weights(fast, dtype)
    return fast


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    layers: dict[nn.Module, list[nn.Module]] = {}
    for layer, owner in owners(model):
        layers.setdefault(layer, []).append(owner)
    for layer, all_owners in layers.items():
        dense = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if dense and all(stated(owner, "keep_float32") is False for owner in all_owners):
            for name, parameter in layer.named_parameters(recurse=False):
                setattr(layer, name, nn.Parameter(_rounded(parameter, dtype), requires_grad=False))


def _rounded(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.detach().to(dtype)
