"""CPU threads: how they wait, how many cores a program may use, and how many of those are free.

The module imports the standard library only, because `sa2depth/__init__.py` calls `wait_briefly` before anything loads
OpenMP, which reads its settings once. PyTorch and OpenCV are looked up only in functions that set their threads.
"""

import math
import os
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FEW = 4
"""Threads for small work, such as metrics of one image; more would only wait for one another."""

NUMBER = "OMP_NUM_THREADS"
"""Environment variable with which a user fixes the number of threads; nothing here changes it then."""

_BY_HAND = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_TURNS, _MOST_TURNS = 5_000, 300_000  # per core, and at most GNU's default
_SLACK = 0.35  # cores that others may use without costing a thread: a machine is never quite idle
_SHORTEST_S = 0.2  # the system counts in hundredths of a second
_SYSTEM = Path("/")


def waiting(cores: int) -> dict[str, str]:
    """Settings that make threads spin for a moment and then sleep at the end of a parallel loop.

    GNU's runtime counts turns, LLVM's and Intel's count milliseconds. By default GNU's threads spin for several
    milliseconds and LLVM's for 200: if another program uses a core, they keep that core from the thread that they wait
    for. Without any spinning a small network on quiet cores is slower, because waking takes time, and more of it for
    more threads: 10,000 turns were best on two cores and too few on 32. docs/performance.md has the measurements.

    Args:
        cores: number of cores that the threads may use.

    Returns:
        Environment variables that an OpenMP runtime reads when it is loaded.
    """
    turns = min(_TURNS * cores, _MOST_TURNS)
    return {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(turns), "KMP_BLOCKTIME": "1"}


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads wait, for this process and those that it starts.

    It has no effect once an OpenMP runtime is loaded, for example by PyTorch. If the user has set any of these
    variables, none is changed.

    Args:
        environment: the process's own, except in tests.
    """
    if not any(name in environment for name in _BY_HAND):
        environment.update(waiting(len(cpus())))


def one_thread_after_fork() -> None:
    """Make processes that are forked from this one compute with one thread.

    GNU's OpenMP runtime does not survive ``fork``: a child of a process that has used its threads would wait forever
    for threads that only its parent has. PyTorch's loader processes do the same by themselves.
    """

    def in_child() -> None:
        torch: Any = sys.modules.get("torch")
        if hasattr(torch, "set_num_threads"):
            torch.set_num_threads(1)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)


def cpus() -> frozenset[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores(processes: int = 1, root: Path = _SYSTEM) -> int:
    """Number of cores for this process, from its affinity and the quota of its control group (a container's limit).

    Args:
        processes: number of processes on this machine that share them.
        root: root of the file system, except in tests.

    Returns:
        At least 1. A fraction of a core is left out, because its thread would keep the others waiting.
    """
    quota = _quota(root)
    cores = len(cpus()) if quota is None else min(len(cpus()), int(quota))
    return max(1, cores // processes)


def _quota(root: Path) -> float | None:
    """Cores that the control group and those above it allow, version 1 or 2; None if no limit is found."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            mounts, read = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], _limit_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [root / "sys/fs/cgroup" / name for name in ("cpu", controllers)], _limit_v1
        else:
            continue
        parts = [part for part in place.split("/") if part not in ("", "..")]
        # inside a container the path may be the host's, and only the root of the mount exists
        folders = [m.joinpath(*parts[:count]) for m in mounts for count in range(len(parts) + 1)]
        limits += [limit for folder in folders if (limit := read(folder)) is not None]
    return min(limits, default=None)


def _limit_v2(folder: Path) -> float | None:
    quota, period = [*_text(folder / "cpu.max").split(), "max", ""][:2]
    return None if quota == "max" else _ratio(quota, period)


def _limit_v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        amount, whole = float(quota), float(period)
    except ValueError:
        return None
    return amount / whole if amount > 0 and whole > 0 else None  # -1: no limit


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


class Meter:
    """Measures how many cores other processes keep busy, from one measurement to the next.

    Args:
        root: root of the file system, except in tests.
    """

    def __init__(self, root: Path = _SYSTEM) -> None:
        self._root = root
        self._before = self._now()

    def waited(self) -> float:
        """Seconds since the last measurement."""
        return time.monotonic() - self._before[0]

    def others(self) -> float | None:
        """Number of cores that others used since the last measurement.

        It is None if that was just now, or if the system does not tell; only Linux does.
        """
        if self.waited() < _SHORTEST_S:
            return None
        before, now = self._before, self._now()
        self._before = now
        seconds = now[0] - before[0]
        if now[1] is None or before[1] is None:
            return None
        return max(0.0, (now[1] - before[1] - (now[2] - before[2])) / seconds)

    def _now(self) -> tuple[float, float | None, float]:
        """The clock, busy seconds of the processors that this process may use, and its own busy seconds."""
        return time.monotonic(), _busy_seconds(self._root), time.process_time()


def _busy_seconds(root: Path) -> float | None:
    wanted = {f"cpu{number}" for number in cpus()}
    ticks, seen = 0, False
    for line in _text(root / "proc/stat").splitlines():
        name, *fields = line.split()
        if name in wanted and len(fields) >= 8:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal  # stolen: another guest has the core
            seen = True
    return ticks / os.sysconf("SC_CLK_TCK") if seen else None


def free_cores(others: float | None, processes: int = 1, root: Path = _SYSTEM) -> int:
    """Number of cores that a process may use and others leave free, at least 1.

    Args:
        others: cores that other processes keep busy, from `Meter`; None: not known, so all count as free.
        processes: see `usable_cores`.
        root: see `usable_cores`.
    """
    usable = usable_cores(processes, root)
    if others is None:
        return usable
    return max(1, min(usable, math.floor(len(cpus()) - others + _SLACK)))


def fixed_by_user() -> bool:
    """Whether ``OMP_NUM_THREADS`` was set when the program began; Lightning sets it later."""
    return _FIXED


def use_threads(count: int) -> int:
    """Set PyTorch's number of threads, never above the number before anything here set it.

    That bound is the user's choice, or PyTorch's own, which is one thread per core.

    Returns:
        The number of threads now.
    """
    global _most, _chosen
    import torch

    before = torch.get_num_threads()
    if before != _chosen:  # somebody else set it
        _most = before
    _chosen = max(1, min(count, _most))
    if _chosen != before:
        torch.set_num_threads(_chosen)
    return _chosen


def settle(device: str, processes: int = 1) -> int:
    """Choose the number of threads when a program begins: the free cores, or few if the CPU has only small work.

    Args:
        device: type of the device that runs the network, as PyTorch names it: ``cpu``, ``cuda``.
        processes: number of processes of this program on this machine. Several processes share the usable cores,
            whatever the load is: at the start each of them sees the others load their libraries.

    Returns:
        PyTorch's number of threads now, which is the user's if ``OMP_NUM_THREADS`` is set.
    """
    import torch

    if fixed_by_user():
        return torch.get_num_threads()
    if device != "cpu":
        return use_threads(min(FEW, usable_cores(processes)))
    return use_threads(usable_cores(processes) if processes > 1 else free_cores(_START.others()))


@contextmanager
def few_threads(count: int = FEW) -> Iterator[None]:
    """A context in which PyTorch and OpenCV use few threads, for small work on the CPU.

    Only the main thread of a program should use it, because it changes the whole process.

    Args:
        count: largest number of threads.
    """
    import torch

    cv2: Any = sys.modules.get("cv2")
    before, cv_before = torch.get_num_threads(), cv2.getNumThreads() if cv2 else 0
    if before > count:
        torch.set_num_threads(count)
    if cv_before > count:
        cv2.setNumThreads(count)
    try:
        yield
    finally:
        if before > count:
            torch.set_num_threads(before)
        if cv_before > count:
            cv2.setNumThreads(cv_before)


_FIXED = NUMBER in os.environ
_START = Meter()  # measures the load while a program loads its libraries
_most = _chosen = 0
