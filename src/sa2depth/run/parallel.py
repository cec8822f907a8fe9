"""Small work on the CPU, done by a few threads of which each computes with one core.

A depth map is too small a piece of work to be shared by all cores: on 32 of them, or where one of two is busy, threads
that wait for each other take many times as long as the work. `sa2depth.threads.few_threads` with one thread belongs
around it: threads that are started inside compute with one core, too.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sa2depth.threads import usable_cores

_Item = TypeVar("_Item")
_MOST = 8  # more only wait for the thread that collects the results


def workers() -> int:
    """Threads for `ahead`: one for each usable core, at most 8."""
    return min(_MOST, usable_cores())


def ahead(work: Callable[[int], _Item], indices: Sequence[int], threads: int) -> Iterator[_Item]:
    """Results in order, a few of them worked out ahead by threads; no more than that are held in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Item]] = deque()
        try:
            for index in indices:
                waiting.append(pool.submit(work, index))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
