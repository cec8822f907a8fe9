"""What a layer states about itself, for code that runs a network in another form (compiled, folded, rounded).

A layer states its traits in the body of its own class. Subclasses do not inherit them, because they may compute
something else: a subclass repeats those that still hold (``compile_unit = True``, ``fold_norms =
SelectiveAttentionBlock.fold_norms``). A layer without traits runs unchanged.

==================  ====================================================================================================
``compile_unit``    ``True``: compile me as a whole, in one graph; ``"in parts"``: as a whole, graph breaks allowed
``fold_norms``      method without arguments: fold the batch norms inside me, see `sa2depth.nn.folding`
``take_affine``     method ``(scale, shift) -> bool``: from now on take the input ``x`` in place of
                    ``scale * x + shift`` (both ``(C,)``) and give the same result; False if I cannot
``plain_conv``      ``True``: I am a convolution, and my weight and bias define it fully
``plain_norm``      method without arguments: True if I am a batch norm and nothing more
``keep_float32``    ``False``: under autocast, weights of my matrix products and dense convolutions may be rounded once
                    instead of at every call (my own, those of torch and timm layers inside me, and what I merge)
==================  ====================================================================================================

A layer that merges weights from several parameters is a subclass of `sa2depth.nn.merged.MergesWeights`.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

_SILENT = ("torch", "timm")
"""Packages whose layers have no traits: those of the layer around them apply."""


def stated(layer: nn.Module, trait: str) -> Any:
    """The trait of a layer, as a value or a bound method; None if the layer does not state it.

    Args:
        layer: any module.
        trait: a name from the table at the top of this file.
    """
    in_class, in_object = vars(type(layer)), vars(layer)
    # an object with its own ``forward`` computes something other than its class
    if trait not in in_object and (trait not in in_class or "forward" in in_object):
        return None
    return getattr(layer, trait)


def owners(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each layer inside a model with its owner: itself, or the layer around it if it comes from torch or timm.

    A layer with several owners comes several times.
    """
    yield from _owners(model, model)


def _owners(layer: nn.Module, around: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    owner = around if type(layer).__module__.partition(".")[0] in _SILENT else layer
    yield layer, owner
    for child in layer.children():
        yield from _owners(child, owner)
