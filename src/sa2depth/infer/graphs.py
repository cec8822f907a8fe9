"""A function of a picture replayed from CUDA graphs: no Python and no launches between its kernels."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_WARM_UPS = 3  # kernels are compiled and algorithms chosen before a graph is captured


class Graphed:
    """Captures a function once for each size of its input, and replays it.

    Args:
        function: ``tensor -> tensor`` without a look at values on the CPU; its weights may not be replaced afterwards.
        most: sizes that are kept; each keeps the memory of its intermediate results.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], most: int = 4) -> None:
        self._function = function
        self._most = most
        self._graphs: OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = (
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
        graph, source, result = self._graphs[key]
        source.copy_(x)
        graph.replay()
        return result.clone()

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        source = x.clone()
        graph, result = capture(lambda: self._function(source), x.device)
        return graph, source, result


def capture(function: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Call a function and capture what it does on the device.

    Args:
        function: it may not copy to the CPU, and finds its inputs where they lie now.
        device: a CUDA device.

    Returns:
        The graph, and the function's result, whose memory each replay fills anew.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # where allocations do not mix with those of the capture
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
    return graph, result
