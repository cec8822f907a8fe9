"""Simulate the rounding of another machine: the last bits of float32 products and sums are different.

Libraries sum in an order that depends on the processor, the number of threads and the shapes. Few machines can be
tried, and a test that passes on all of them by luck fails on the next one. Here the last bits depend on a seed, the
shape and the value: the same call gives the same result, but another way to compute it gives another result.

    SA2DEPTH_TEST_ROUNDING=3,16 pytest -n 0 tests/infer

Tests that count compiled graphs fail under it: `torch.compile` does not compile code under a dispatch mode.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VARIABLE = "SA2DEPTH_TEST_ROUNDING"
"""Environment variable with the seed, or ``SEED,UNITS``; without it nothing is changed."""

_SUMS = frozenset(
    "mm addmm bmm baddbmm convolution convolution_backward native_layer_norm native_batch_norm "  # noqa: SIM905
    "_native_batch_norm_legit _native_batch_norm_legit_no_training sum mean _softmax cumsum "
    "upsample_bilinear2d grid_sampler_2d".split()
)
_OURS = "sa2depth"
"""Namespace of our own operators."""


class Rounding(TorchDispatchMode):
    """Rounds the results of sums differently from this machine.

    Args:
        seed: number of the simulated machine.
        units: largest change in units in the last place. Another order of some hundred terms changes 4; 16 swaps more
            ranks than any machine, to find the tests that depend on them.
    """

    def __init__(self, seed: int, units: int = 4) -> None:
        super().__init__()
        self.seed, self.units = seed, units

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if func._schema.is_mutable or not (func.namespace == _OURS or packet.__name__ in _SUMS):
            return result
        signed = packet.__name__ != "_softmax"
        if isinstance(result, Tensor):
            return self._rounded(result, signed)
        if isinstance(result, tuple | list):
            return type(result)(
                self._rounded(part, signed) if isinstance(part, Tensor) else part for part in result
            )
        return result

    def _rounded(self, value: Tensor, signed: bool) -> Tensor:
        if value.dtype != torch.float32 or value.device.type != "cpu" or not value.numel():
            return value
        with torch.utils._python_dispatch._disable_current_modes():
            bits = value.detach().contiguous().view(torch.int32).to(torch.int64)
            mixed = (bits ^ (self.seed * 0x9E3779B1 + value.numel())) * 0x2545F491
            step = (mixed >> 13).remainder(3) - 1
            size = value.detach().abs()
            if signed:  # if terms cancel, the error of the larger ones remains
                size = torch.maximum(size, size.mean())
            size = size * (self.units * torch.finfo(torch.float32).eps)
            return torch.where(value == 0, value, value + step.view_as(value) * size)
