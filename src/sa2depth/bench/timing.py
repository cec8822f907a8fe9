"""Measure the time of a call and the memory that it adds, on any device."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sa2depth.runtime.replayed import capture

_LEAST, _MOST = 3, 200
_WARM_UPS = 3  # on CUDA, where autograd, allocator and clocks need several calls to settle


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        median_ms: median over the calls.
        fastest_ms: fastest of the calls.
        calls: number of timed calls, without the warm-up.
        peak_mib: peak memory of the timed calls on a CUDA device; None on a CPU.
    """

    median_ms: float
    fastest_ms: float
    calls: int
    peak_mib: float | None


def allocated(device: torch.device) -> int:
    """Bytes in use on a CUDA device; 0 for a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def measure(
    function: Callable[[], object],
    device: torch.device,
    budget_s: float = 1.0,
    before: int = 0,
    *,
    captured: bool = False,
) -> Timing:
    """Call a function until its time budget is used up, at least three times.

    On a CUDA device the time is the device's, between two events around the call.

    Args:
        function: the function to time; its result is dropped.
        device: device on which it computes.
        budget_s: time budget in seconds.
        before: bytes in use before anything for this measurement was made; they are not counted.
        captured: whether the function replays a CUDA graph, whose memory peaked during capture; the peak is then
            that since the caller last reset it.

    Returns:
        The measurement.
    """
    gc.collect()
    on_cuda = device.type == "cuda"
    for _ in range(_WARM_UPS if on_cuda else 1):
        function()  # the first calls compile, choose algorithms and fill caches
    if on_cuda:
        torch.cuda.synchronize(device)
        if not captured:
            torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    while len(times) < _LEAST or (sum(times) < budget_s * 1000 and len(times) < _MOST):
        times.append(_once_cuda(function, device) if on_cuda else _once(function))
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if on_cuda else None
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
    """Capture a function as a CUDA graph, whose time is that of the kernels without Python and launches.

    Args:
        function: the function to capture; it may not copy to the CPU.
        device: a CUDA device.
    """
    graph, _ = capture(function, device)
    return graph.replay
