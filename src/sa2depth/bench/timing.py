"""How long a call takes and how much memory it adds, on any device."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_LEAST, _MOST = 3, 200


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        median_ms: median over the calls.
        fastest_ms: fastest of the calls.
        calls: number of timed calls, after one that was not.
        peak_mib: memory on a CUDA device at the worst moment, beyond what was there before; None on a CPU.
    """

    median_ms: float
    fastest_ms: float
    calls: int
    peak_mib: float | None


def measure(function: Callable[[], object], device: torch.device, budget_s: float = 1.0) -> Timing:
    """Call a function until its share of time is used up, three times at least.

    On a CUDA device the time is the device's, between two events around the call.

    Args:
        function: what to time; its result is dropped.
        device: where it computes.
        budget_s: seconds.

    Returns:
        The measurement.
    """
    gc.collect()
    on_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    function()  # compiles, chooses algorithms, fills caches
    peak = None
    if on_cuda:
        torch.cuda.synchronize(device)
        peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    times: list[float] = []
    while len(times) < _LEAST or (sum(times) < budget_s * 1000 and len(times) < _MOST):
        times.append(_once_cuda(function, device) if on_cuda else _once(function))
    return Timing(statistics.median(times), min(times), len(times), peak)


def _once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def _once_cuda(function: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        function()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end))


def replayed(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same work as a CUDA graph: its time is that of the kernels, without Python and launches.

    Args:
        function: what to capture; it may not copy to the CPU.
        device: a CUDA device.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # warm up where allocations do not mix with those of the capture
            for _ in range(2):
                function()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    return graph.replay
