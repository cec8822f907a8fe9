"""Statements of a layer about itself, for those that run a network in another form (compiled, folded, rounded).

A layer states it in the body of its own class; a subclass does not inherit it, because it may compute something else:
it repeats what still holds (``compile_unit = True``, ``fold_norms = SelectiveAttentionBlock.fold_norms``). A layer that
says nothing is run as it is.

==================  ====================================================================================================
``compile_unit``    ``True``: compile me as a whole, in one graph; ``"in parts"``: as a whole, with breaks where need be
``fold_norms``      method without arguments: fold the batch norms inside me, see `sa2depth.nn.folding`
``take_affine``     method ``(scale, shift) -> bool``: from now on take the input ``x`` in place of
                    ``scale * x + shift`` (both ``(C,)``) and give the same result; False if I cannot
``plain_conv``      ``True``: I am a convolution whose weight and bias say all that I compute
``plain_norm``      method without arguments: whether I am a batch norm and nothing more
``keep_float32``    ``False``: under autocast, weights of my matrix products and dense convolutions may be rounded once
                    instead of at every call (my own, those of layers of torch and timm inside me, and what I merge)
==================  ====================================================================================================

Weights that a layer merges from several parameters are a base class, `sa2depth.nn.merged.MergesWeights`.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

_SILENT = ("torch", "timm")
"""Packages whose layers cannot say anything: the layer around them answers for them."""


def stated(layer: nn.Module, trait: str) -> Any:
    """The statement of a layer, as a value or a bound method; None if it says nothing.

    Args:
        layer: any module.
        trait: one of those in the head of this file.
    """
    in_class, in_object = vars(type(layer)), vars(layer)
    # the object computes something else than its class says
    if trait not in in_object and (trait not in in_class or "forward" in in_object):
        return None
    return getattr(layer, trait)


def owners(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each layer inside a model, and who answers for it: itself, or the one around it if it is of torch or timm.

    A layer that several own comes several times.
    """
    yield from _owners(model, model)


def _owners(layer: nn.Module, around: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    owner = around if type(layer).__module__.partition(".")[0] in _SILENT else layer
    yield layer, owner
    for child in layer.children():
        yield from _owners(child, owner)
