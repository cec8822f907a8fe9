"""A layer run again in the backward pass instead of keeping what it made (Chen et al., 2016)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701
from torch.nn.modules.dropout import _DropoutNd  # noqa: PLC2701
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, x: Tensor, *, again: bool) -> Tensor:
    """A layer's result; kept for the backward pass if not ``again``, else computed again there.

    A layer that needs random numbers has a method ``draw`` that makes them of its input, and takes them as its second
    argument: drawn once, they serve both runs, also where each is replayed from a CUDA graph of its own. For other
    layers that may draw some (dropout, a layer of somebody else's) the RNG state is restored.
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
    """Whether something inside may draw random numbers by itself: the second run must then see the same ones.

    Layers of this package take those of `draw`, or none. Restoring the RNG's state cannot be captured in a CUDA graph,
    so nobody pays for it without need; where it is needed, training runs without graphs and says so.
    """
    house = __name__.partition(".")[0]
    return any(
        isinstance(inside, (_DropoutNd, nn.RReLU, nn.MultiheadAttention))
        or type(inside).__module__.partition(".")[0] not in (house, "torch")
        for inside in layer.modules()
        if inside.training
    )


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Batch norms count a batch once, though they see it twice."""
    # Put back afterwards, not switched off meanwhile: the second run must save the same tensors as the first.
    norms = [m for m in layer.modules() if isinstance(m, _BatchNorm) and m.training]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
