"""Capturing CUDA graphs without side effects on the rest of the process."""

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
_WARM_UPS = 3  # compile kernels and choose algorithms before a graph is captured


def warm_up(function: Callable[[], object], device: torch.device) -> None:
    """Call a function before its capture, on a side stream, so that its allocations do not mix with the capture's."""
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
        handle: handle of their memory pool.
        stream: capture stream on their device; PyTorch's default one belongs to the device of its first capture.
    """

    handle: Any
    stream: torch.cuda.Stream


def captured(function: Callable[[], Result], pool: Pool) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture a function's work on the current device: the graph, and the result, which each replay overwrites.

    Other threads may use the device meanwhile: data loaders pin memory, and NCCL's watchdog queries its events.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool.handle, pool.stream, capture_error_mode="thread_local"):
        result = function()
    _graphs.add(graph)
    # Registered last, so called first, before the process group ends: NCCL waits until no graph holds a collective,
    # and would wait forever if an exception's frames kept a graph alive.
    atexit.unregister(_forget)
    atexit.register(_forget)
    return graph, result


def _forget() -> None:
    for graph in list(_graphs):
        with suppress(RuntimeError):  # the device may have failed
            graph.reset()


@functools.cache
def _stream(index: int) -> torch.cuda.Stream:
    # one stream for all captures on a device: cuBLAS keeps 32 MiB for each stream that it has ever seen
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


@contextmanager
def memory_pool(device: torch.device) -> Iterator[Pool]:
    """Memory for graphs that run one after the other; cleans up after a capture that fails inside the context.

    A lock lets in one thread at a time, because PyTorch cannot capture two graphs at once. After a failed capture,
    PyTorch 2.11 itself would leave the capture stream current, refuse random numbers on the device from then on, and
    neither close the pool nor free its memory.
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
            # raises if the capture itself had ended properly; the graph then frees the memory
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, handle)
                torch._C._cuda_releasePool(index, handle)
            raise
