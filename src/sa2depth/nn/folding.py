"""Batch norms of a trained network folded into the layers behind them."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701

from sa2depth.nn.traits import stated

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_norms(model: nn.Module) -> int:
    """Let every layer that says how fold its batch norms, in place; see `sa2depth.nn.traits`.

    Layers whose parameters are shared with another one are left as they are: each use may have its own norm.

    Args:
        model: in eval mode.

    Returns:
        How many batch norms are gone.
    """
    before = _count(model)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for layer in list(model.modules()):
        fold = stated(layer, "fold_norms")
        if fold is not None and all(uses[id(p)] == 1 for p in layer.parameters()):
            fold()
    return before - _count(model)


def fold(norm: nn.Module, behind: nn.Module) -> nn.Module:
    """Fold a batch norm into the layer that takes its result, and nothing else does.

    Args:
        norm: in eval mode.
        behind: is asked by its ``take_affine``.

    Returns:
        What takes the place of the norm: nothing (an identity), or itself where it cannot be folded: it is no plain
        batch norm with running statistics, ``behind`` does not say that it can take its input, or a hook
        watches the input.
    """
    take_affine = stated(behind, "take_affine")
    affine = _affine(norm)
    if take_affine is None or affine is None or _watched(norm) or _watched(behind):
        return norm
    return nn.Identity() if take_affine(*affine) else norm


@torch.no_grad()
def fold_into(convs: Sequence[nn.Module], scale: Tensor, shift: Tensor) -> bool:
    """Make 1x1 convolutions of ``scale * x + shift`` take ``x``: all of them or none.

    Args:
        convs: plain 1x1 convolutions with a bias; a subclass may compute something else.
        scale: ``(C,)``.
        shift: ``(C,)``.

    Returns:
        False, with nothing changed, if one of them is something else.
    """
    plain = [conv for conv in convs if isinstance(conv, nn.Conv2d) and _foldable(conv)]
    if len(plain) < len(convs):
        return False
    for conv in plain:
        assert conv.bias is not None
        conv.bias += conv.weight.flatten(1) @ shift
        conv.weight *= scale[:, None, None]
    return True


def _foldable(conv: nn.Conv2d) -> bool:
    one = conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding in ((0, 0), "valid", "same")
    known = type(conv) is nn.Conv2d or stated(conv, "plain_conv") is True
    return known and one and conv.bias is not None and not _watched(conv)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and shift ``(C,)`` of a batch norm, or None if it does more or has no statistics."""
    plain_norm = stated(norm, "plain_norm")
    if "forward" in vars(norm) or not (type(norm) in _NORMS if plain_norm is None else plain_norm()):
        return None
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        return None  # statistics of each batch
    scale = (norm.running_var + norm.eps).rsqrt()
    if not norm.affine:
        return scale, -norm.running_mean * scale
    scale = norm.weight * scale
    return scale, norm.bias - norm.running_mean * scale


def _watched(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _count(model: nn.Module) -> int:
    return sum(_affine(module) is not None for module in model.modules())
