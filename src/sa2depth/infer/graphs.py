"""A function of a picture replayed from CUDA graphs: no Python and no launches between its kernels."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sa2depth.models.capture import captured, memory_pool, warm_up

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Graphed:
    """Captures a function once for each size of its input, and replays it.

    A function that cannot be captured is called as it is, and one line says so.

    Args:
        function: ``tensor -> tensor`` without a look at values on the CPU; its weights may not be replaced afterwards.
        most: sizes that are kept; each keeps the memory of its intermediate results.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], most: int = 4) -> None:
        self._function = function
        self._most = most
        self._graphs: OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None] = (
            OrderedDict()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The function of ``x``, a CUDA tensor; the result is the caller's own."""
        key = tuple(x.shape)
        if key not in self._graphs:
            while len(self._graphs) >= self._most:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(x)
        self._graphs.move_to_end(key)
        found = self._graphs[key]
        if found is None:
            return self._function(x)
        graph, source, result = found
        source.copy_(x)
        graph.replay()
        return result.clone()

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None:
        source = x.clone()
        try:
            graph, result = capture(lambda: self._function(source), x.device)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            _log.warning("pictures of %d x %d run without a CUDA graph: %s", *x.shape[-2:], reason)
            return None
        return graph, source, result


def capture(function: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Call a function and capture what it does on the device.

    Args:
        function: it may not copy to the CPU, and finds its inputs where they lie now.
        device: a CUDA device.

    Returns:
        The graph, and the function's result, whose memory each replay fills anew.

    Raises:
        RuntimeError: it cannot be captured; the device works on as before.
    """
    with memory_pool(device) as pool:
        warm_up(function, device)
        return captured(function, pool)
