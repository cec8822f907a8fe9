"""Gradient checkpointing of one layer: recompute its activations in the backward pass (Chen et al., 2016)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701
from torch.nn.modules.dropout import _DropoutNd  # noqa: PLC2701
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, x: Tensor, *, again: bool) -> Tensor:
    """The result of a layer; with ``again``, its activations are recomputed in the backward pass instead of kept.

    A layer that needs random numbers has a method ``draw(x)`` that returns them, and takes them as its second
    argument: drawn once, they serve both runs, even if each run is replayed from its own CUDA graph. For other layers
    that may draw random numbers (dropout, layers of other packages) the RNG state is restored.
    """
    if not (again and torch.is_grad_enabled()):
        result: Tensor = layer(x)
        return result

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(layer)

    draw = getattr(layer, "draw", None)
    arguments = (x,) if draw is None else (x, draw(x))
    recomputed: Tensor = checkpoint(
        layer, *arguments, use_reentrant=False, context_fn=contexts, preserve_rng_state=_may_draw(layer)
    )
    return recomputed


def _may_draw(layer: nn.Module) -> bool:
    """True if something inside may draw random numbers itself: the second run must then see the same ones.

    Layers of this package use the numbers of ``draw``, or none. Restoring the RNG state cannot be captured in a CUDA
    graph, so it is done only where needed; training then runs without graphs and logs a warning.
    """
    own_package = __name__.partition(".")[0]
    return any(
        isinstance(inside, (_DropoutNd, nn.RReLU, nn.MultiheadAttention))
        or type(inside).__module__.partition(".")[0] not in (own_package, "torch")
        for inside in layer.modules()
        if inside.training
    )


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Restore the statistics of batch norms, so that they count a batch once although it passes twice."""
    # The norms keep tracking meanwhile: the second run must save the same tensors as the first.
    norms = [m for m in layer.modules() if isinstance(m, _BatchNorm) and m.training]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
