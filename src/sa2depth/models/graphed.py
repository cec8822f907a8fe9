"""Training with the network replayed from CUDA graphs: a step takes as long as its kernels, not as Python.

A training step of SA2Depth-T launches over 3,000 kernels; on an H100 Python needs three times as long to launch them
as they need to run.
"""

import logging

import torch
from torch import Tensor, nn

from sa2depth.models.sa2depth import DepthOutput, SA2Depth

_log = logging.getLogger(__name__)


class GraphedTraining:
    """Calls a network in training mode; forward and backward pass are captured at the first batch, then replayed.

    The optimiser, the loss and all-reduces stay outside. Weights are read where they lie: they may change in place, not
    be replaced. A batch of another shape, or under another autocast, runs without graphs. Set gradients to None between
    steps: each replay writes them anew where the last ones lie, so that they can neither be accumulated nor zeroed.

    Args:
        model: on a CUDA device. Nothing in it may copy to the CPU.
        required: raise if it cannot be captured; otherwise it then runs without graphs, and one line says why.
    """

    def __init__(self, model: SA2Depth, required: bool = False) -> None:
        self._model = model
        self._required = required
        self._flat: _Flat | None = None
        self._key: tuple[object, ...] | None = None

    def __call__(self, image: Tensor) -> DepthOutput:
        """``(B, 3, H, W)`` in [0, 1] to the network's output, with gradients to its weights."""
        key = (image.shape, image.dtype, _autocast_dtype())
        if self._key is None:
            self._key = key
            self._flat = self._capture(image)
        if self._flat is None or key != self._key:
            output: DepthOutput = self._model(image)
            return output
        return DepthOutput(*self._flat(image))

    def _capture(self, image: Tensor) -> "_Flat | None":
        flat = _Flat(self._model, _autocast_dtype())
        before = [buffer.clone() for buffer in self._model.buffers()]
        state = torch.cuda.get_rng_state(image.device)
        try:
            # inside, the network has its own autocast; around it, the backward pass would be under it, too
            with torch.autocast("cuda", enabled=False):
                torch.cuda.make_graphed_callables(flat, (image.clone(),), allow_unused_input=True)
        except RuntimeError as error:
            if self._required:
                raise
            _log.warning("training runs without CUDA graphs: %s", str(error).partition("\n")[0])
            return None
        finally:
            # the warm-up is no training: batch norms and random numbers know nothing of it
            with torch.no_grad():
                for buffer, value in zip(self._model.buffers(), before, strict=True):
                    buffer.copy_(value)
            torch.cuda.set_rng_state(state, image.device)
        return flat


class _Flat(nn.Module):
    """The network under an autocast without a cache, with a plain tuple as its output."""

    def __init__(self, model: SA2Depth, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        enabled, dtype = self._dtype is not None, self._dtype or torch.bfloat16
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            output = self.model(image)
        return output.depth, output.bin_centers


def _autocast_dtype() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
