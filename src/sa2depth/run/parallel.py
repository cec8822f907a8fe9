"""Small work on the CPU, done by a few threads that compute with one core each.

One depth map is too little work for all cores: on 32 of them, or if one of two is busy, threads wait for each other
many times as long as the work takes. Callers should use `sa2depth.threads.few_threads` with one thread around it, so
that threads started inside compute with one core, too.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sa2depth.threads import usable_cores

_Item = TypeVar("_Item")
_MOST = 8  # more would only wait for the thread that collects the results


def workers() -> int:
    """Number of threads for `ahead`: one per usable core, at most 8."""
    return min(_MOST, usable_cores())


def ahead(work: Callable[[int], _Item], indices: Sequence[int], threads: int) -> Iterator[_Item]:
    """Results in order; threads compute a few of them ahead, and only those are held in memory."""
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
