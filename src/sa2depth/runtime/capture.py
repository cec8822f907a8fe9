"""Capturing CUDA graphs so that nothing else of the process is disturbed."""

import atexit
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_lock = threading.RLock()
_graphs: "weakref.WeakSet[torch.cuda.CUDAGraph]" = weakref.WeakSet()
_WARM_UPS = 3  # kernels are compiled and algorithms chosen before a graph is captured


def warm_up(function: Callable[[], object], device: torch.device) -> None:
    """Call what will be captured, on a side stream: its allocations do not mix with those of the capture."""
    here = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            function()
    here.wait_stream(side)


@dataclass(frozen=True)
class Pool:
    """Memory and stream, shared by graphs that run one after the other.

    Attributes:
        handle: of their memory.
        stream: that they are captured on, of their own device: PyTorch's belongs to the device of its first capture.
    """

    handle: Any
    stream: torch.cuda.Stream


def captured(function: Callable[[], Result], pool: Pool) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of what a function does on the current device, and its result, which each replay fills again.

    Other threads may use the device meanwhile: loaders pin memory, and NCCL's watchdog looks at its events.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool.handle, pool.stream, capture_error_mode="thread_local"):
        result = function()
    _graphs.add(graph)
    # Registered last, called first, before what ends a process group: NCCL waits until no graph holds a collective,
    # which an exception's frames would let it do forever.
    atexit.unregister(_forget)
    atexit.register(_forget)
    return graph, result


def _forget() -> None:
    for graph in list(_graphs):
        with suppress(RuntimeError):  # a device that has failed
            graph.reset()


@functools.cache
def _stream(index: int) -> torch.cuda.Stream:
    # one for all captures on a device: cuBLAS keeps 32 MiB for each that it has ever seen
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


@contextmanager
def memory_pool(device: torch.device) -> Iterator[Pool]:
    """Memory for graphs that run one after the other. A capture that fails in here leaves the process as it was.

    One thread at a time: PyTorch captures no two graphs at once. By itself PyTorch 2.11 leaves the capture's stream as
    the current one, refuses random numbers on the device ever after, and neither closes the pool nor gives its memory
    back.
    """
    handle = torch.cuda.graph_pool_handle()
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock, torch.cuda.device(index), torch.cuda.stream(torch.cuda.current_stream(index)):
        generator = torch.cuda.default_generators[index]
        numbers = generator.clone_state()
        try:
            yield Pool(handle, _stream(index))
        except BaseException:
            generator.graphsafe_set_state(numbers)
            # refused where the capture has ended in order, and its graph frees the memory
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, handle)
                torch._C._cuda_releasePool(index, handle)
            raise
