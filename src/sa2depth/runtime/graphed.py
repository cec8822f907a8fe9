"""Training with the network replayed from CUDA graphs, so that Python's launch overhead disappears.

A training step of SA2Depth-T launches over 3,000 kernels; on an H100 Python takes three times as long to launch them
as they take to run.
"""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sa2depth.models.sa2depth import DepthOutput
from sa2depth.runtime.capture import captured, memory_pool, warm_up

_log = logging.getLogger(__name__)


class GraphedTraining:
    """A network in training mode whose forward and backward pass are captured at the first batch, then replayed.

    The optimiser, the loss and all-reduces of gradients stay outside of the graphs; all-reduces of synchronised batch
    norms are captured. Weights may change in place but must not be replaced. A batch of another shape, under another
    autocast or with other weights frozen runs without graphs. Set gradients to None between steps: each replay
    overwrites the last ones in place, so they cannot be accumulated or zeroed, and a gradient that is not None raises
    ``RuntimeError``. Code that wraps the network in ``DistributedDataParallel`` must do so under a side stream, as
    Lightning does, and call `release` before the process group ends, which would otherwise wait for the graphs.

    Args:
        model: a depth network on a CUDA device. Nothing in it may copy to the CPU.
        required: raise if it cannot be captured; by default it then runs without graphs and logs a warning.
    """

    def __init__(self, model: nn.Module, required: bool = False) -> None:
        self._model = model
        self._required = required
        self._passes: Passes | None = None
        self._key: tuple[object, ...] | None = None

    def __call__(self, image: Tensor) -> DepthOutput:
        """Image ``(B, 3, H, W)`` in [0, 1] to the network's output, differentiable by its weights."""
        dtype = _autocast_dtype()
        trained = sum(weight.requires_grad for weight in self._model.parameters())
        key = (image.shape, image.dtype, dtype, trained)
        if self._key is None:
            self._key = key
            self._passes = self._capture(image, dtype)
        if self._passes is None or key != self._key:
            output: DepthOutput = self._model(image)
            return output
        return DepthOutput(*replay(self._passes, image))

    def release(self) -> None:
        """Free the graphs and their memory; the next call captures again."""
        if self._passes is not None:
            self._passes.forward.reset()
            self._passes.backward.reset()
        self._passes = self._key = None

    def _capture(self, image: Tensor, dtype: torch.dtype | None) -> "Passes | None":
        before = [buffer.clone() for buffer in self._model.buffers()]
        numbers = torch.cuda.get_rng_state(image.device)
        passes, failed = None, None
        try:
            # autocast is entered inside, around the forward pass alone, not around the backward pass
            with torch.autocast("cuda", enabled=False):
                passes = _capture(self._model, image, dtype)
        except RuntimeError as error:
            failed = error
        finally:
            # the warm-up must not count as training: restore batch norms and the RNG state
            with torch.no_grad():
                for buffer, value in zip(self._model.buffers(), before, strict=True):
                    buffer.copy_(value)
            torch.cuda.set_rng_state(numbers, image.device)
        if not _agreed(failed is None, image.device):
            if self._required:
                raise failed or RuntimeError("another process could not capture the network")
            reason = failed or "another process could not capture the network"
            _log.warning("training runs without CUDA graphs: %s", str(reason).partition("\n")[0])
            return None
        return passes


def _agreed(succeeded: bool, device: torch.device) -> bool:
    """True if all processes succeeded: synchronised batch norms must be captured by all or by none."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return succeeded
    flag = torch.tensor(int(succeeded), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


class Replayable(Protocol):
    """A captured pass."""

    def replay(self) -> None:
        """Run it on the present content of its inputs."""

    def reset(self) -> None:
        """Free it."""


@dataclass(frozen=True)
class Passes:
    """Forward and backward pass of a network with the tensors that they read and write.

    Attributes:
        forward: reads ``image`` and ``weights``, writes ``outputs``.
        backward: reads ``output_gradients``, writes ``gradients``.
        image: the batch's images.
        outputs: the network's outputs.
        output_gradients: one for each output; None if the output has no gradient.
        weights: the trained weights.
        gradients: one for each weight; None if the weight has no influence.
    """

    forward: Replayable
    backward: Replayable
    image: Tensor
    outputs: tuple[Tensor, ...]
    output_gradients: tuple[Tensor | None, ...]
    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]


def replay(passes: Passes, image: Tensor) -> tuple[Tensor, ...]:
    """The outputs for a batch; they and the gradients of the weights are valid until the next replay."""
    outputs: tuple[Tensor, ...] = _Replay.apply(passes, image, *passes.weights)  # type: ignore[no-untyped-call]
    return outputs


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, image: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.passes = passes
        passes.image.copy_(image)
        passes.forward.replay()
        return tuple(output.detach() for output in passes.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        passes: Passes = ctx.passes
        if any(weight.grad is not None for weight in passes.weights):
            raise RuntimeError(
                "a replay overwrites the gradients of the step before: set them to None before backward "
                "(optimizer.zero_grad() does), or train with cuda_graph=false to accumulate them"
            )
        for place, gradient in zip(passes.output_gradients, output_gradients, strict=True):
            if place is not None:
                place.copy_(gradient)
        passes.backward.replay()
        return (None, None, *(None if g is None else g.detach() for g in passes.gradients))


def _capture(model: nn.Module, image: Tensor, dtype: torch.dtype | None) -> Passes:
    source = image.detach().clone()
    weights = tuple(weight for weight in model.parameters() if weight.requires_grad)

    def forward() -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
            output: DepthOutput = model(source)
        return output.depth, output.bin_centers

    def backward(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(outputs, weights, gradients, allow_unused=True)

    def both() -> None:
        outputs = tuple(output for output in forward() if output.requires_grad)
        backward(outputs, tuple(torch.zeros_like(output) for output in outputs))

    with memory_pool(image.device) as pool:
        warm_up(both, image.device)
        forward_pass, outputs = captured(forward, pool)
        places = tuple(torch.zeros_like(output) if output.requires_grad else None for output in outputs)
        backward_pass, gradients = captured(
            lambda: backward(
                tuple(output for output in outputs if output.requires_grad),
                tuple(place for place in places if place is not None),
            ),
            pool,
        )
    # detached from autograd: the graphs themselves keep the saved tensors alive
    results = tuple(output.detach() for output in outputs)
    return Passes(forward_pass, backward_pass, source, results, places, weights, gradients)


def _autocast_dtype() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
