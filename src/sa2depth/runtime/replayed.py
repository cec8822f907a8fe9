"""A function of an image replayed from CUDA graphs, without Python or launches between its kernels."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sa2depth.runtime.capture import captured, memory_pool, warm_up

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

_IDLE_CALLS = 32


class Graphed:
    """Replays a function from CUDA graphs, one for each input size that is used repeatedly.

    A size is captured after its first ``calls`` calls. If there are already ``most`` graphs, the one unused for
    longest is dropped, but only after 32 calls without it. Sizes without a graph, and a function that cannot be
    captured, are called normally. Threads may share this object and take turns.

    Args:
        function: ``tensor -> tensor`` that does not read values on the CPU; its weights must not be replaced later.
        most: number of sizes that are kept; each keeps the memory of its intermediate results.
        calls: normal calls of a size before it is captured.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], most: int = 4, calls: int = 1) -> None:
        self._function = function
        self._most = most
        self._calls = calls
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._impossible: set[tuple[int, ...]] = set()
        self._lock = threading.Lock()
        self._clock = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The function of ``x``, a CUDA tensor; later calls do not overwrite the result."""
        with self._lock:
            self._clock += 1
            graph = self._graph(x)
            if graph is not None:
                graph.used = self._clock
                result = graph(x)
                # another thread may continue on another stream
                torch.cuda.current_stream(x.device).synchronize()
                return result
        return self._function(x)

    def _graph(self, x: Tensor) -> "_Graph | None":
        key = tuple(x.shape)
        if key in self._graphs or key in self._impossible:
            return self._graphs.get(key)
        self._seen[key] += 1
        if self._seen[key] <= self._calls or not self._make_room():
            return None
        try:
            self._graphs[key] = _Graph(self._function, x)
        except torch.OutOfMemoryError:
            self._graphs.clear()  # the call itself may need their memory
            torch.cuda.empty_cache()
            self._give_up(key, "the GPU does not have enough memory")
        except RuntimeError as error:
            self._give_up(key, str(error).partition("\n")[0])
        return self._graphs.get(key)

    def _make_room(self) -> bool:
        if len(self._graphs) < self._most:
            return True
        oldest = min(self._graphs, key=lambda key: self._graphs[key].used)
        if self._clock - self._graphs[oldest].used < _IDLE_CALLS:
            return False
        del self._graphs[oldest]
        return True

    def _give_up(self, key: tuple[int, ...], reason: str) -> None:
        self._impossible.add(key)
        _log.warning("images of %d x %d run without a CUDA graph: %s", *key[-2:], reason)


class _Graph:
    """A function captured for one input size."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.used = 0
        self._source = x.clone()
        self._graph, self._result = capture(lambda: function(self._source), x.device)

    def __call__(self, x: Tensor) -> Tensor:
        self._source.copy_(x)
        self._graph.replay()
        return self._result.clone()


def capture(function: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Call a function and capture its work on the device.

    Args:
        function: must not copy to the CPU; replays read its inputs from their present memory.
        device: a CUDA device.

    Returns:
        The graph, and the function's result, whose memory each replay overwrites.

    Raises:
        RuntimeError: if it cannot be captured; the device remains usable.
    """
    with memory_pool(device) as pool:
        warm_up(function, device)
        return captured(function, pool)
