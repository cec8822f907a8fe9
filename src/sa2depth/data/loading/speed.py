"""Speed of the training loader, and the time of one image split into its stages.

The stages are timed in one process, one image after the other, by the functions that the loader calls.
"""

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import cv2
import torch

from sa2depth.data.frame import depth_of_frame, read_frame
from sa2depth.data.loading.datamodule import DepthDataModule
from sa2depth.data.loading.dataset import Batch, DepthDataset, collate, to_item
from sa2depth.data.loading.samplers import stream
from sa2depth.data.sample import RawSample, full_depth
from sa2depth.data.source import FileSource

STAGES = ("decode image", "decode depth", "make sample", "prepare", "augment", "tensor", "collate")
"""The stages of an image, in this order. Files are decoded, synthetic samples are made."""

_WARM_BATCHES = 2
"""Batches of each worker that are not timed: the first includes its start, the others were prefetched."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Rate:
    """Images per second of one loader.

    Attributes:
        workers: loader processes; 0: the main process loads.
        images: number of images timed.
        seconds: time that they took.
        start_s: seconds from the first request to the first batch.
    """

    workers: int
    images: int
    seconds: float
    start_s: float

    @property
    def per_second(self) -> float:
        """Images per second in all."""
        return self.images / self.seconds

    @property
    def per_worker(self) -> float:
        """Images per second of each worker; the main process counts as one."""
        return self.per_second / max(1, self.workers)


def loader_rate(data: DepthDataModule, workers: int, seconds: float) -> Rate:
    """Time the training loader alone, without a network that makes it wait.

    Args:
        data: a data module with training data.
        workers: loader processes.
        seconds: time to measure, after the workers have started; at least one batch is timed.

    Raises:
        ConfigError: see `DepthDataModule.train_dataloader`.
        DataError: a file is missing or broken.
    """
    before, data.num_workers = data.num_workers, workers
    try:
        loader = data.train_dataloader()
    finally:
        data.num_workers = before
    began = time.perf_counter()
    batches = _endless(loader)
    next(batches)
    start = time.perf_counter() - began
    for _ in range(_WARM_BATCHES * max(1, workers)):
        next(batches)
    images, began = 0, time.perf_counter()
    while images == 0 or time.perf_counter() - began < seconds:
        images += len(next(batches)["id"])
    elapsed = time.perf_counter() - began
    batches.close()
    return Rate(workers, images, elapsed, start)


def stage_times(dataset: DepthDataset, batch_size: int, seconds: float) -> dict[str, float]:
    """Milliseconds per image in each of the ``STAGES`` that occur.

    Args:
        dataset: data set with its augmentation.
        batch_size: images in a batch.
        seconds: time to measure; at least one batch is timed, after a first one that is not.

    Raises:
        DataError: a file is broken.
    """
    # One thread, as in a worker, so that times add up.
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        order = stream(dataset.seed, 0, 0).permutation(len(dataset)).tolist()
        _time_batch(dataset, list(itertools.islice(itertools.cycle(order), batch_size)), {})
        total: dict[str, float] = {}
        images, began, turn = 0, time.perf_counter(), itertools.cycle(order)
        while images == 0 or time.perf_counter() - began < seconds:
            _time_batch(dataset, list(itertools.islice(turn, batch_size)), total)
            images += batch_size
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
    return {stage: 1000 * total[stage] / images for stage in STAGES if stage in total}


def recommend(rates: Sequence[Rate], enough: float = 0.95) -> int:
    """The smallest number of workers that reaches nearly the best rate measured."""
    best = max(rate.per_second for rate in rates)
    return min(rate.workers for rate in rates if rate.per_second >= enough * best)


def _endless(loader: Any) -> Generator[Batch, None, None]:
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def _time_batch(dataset: DepthDataset, indices: Sequence[int], total: dict[str, float]) -> None:
    def timed(stage: str, work: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        result = work()
        total[stage] = total.get(stage, 0.0) + time.perf_counter() - began
        return result

    items = []
    for index in indices:
        sample = _read(dataset, index, timed)
        if sample.depth is not None and sample.depth.shape != sample.image.shape[:2]:
            sample = timed("augment", partial(full_depth, sample))
        if dataset.augment is not None:
            rng = stream(dataset.seed, 1, 0, index)
            sample = timed("augment", partial(dataset.augment, sample, rng))
        items.append(timed("tensor", partial(to_item, sample, index)))
    timed("collate", lambda: collate(items))


def _read(dataset: DepthDataset, index: int, timed: Callable[[str, Callable[[], Any]], Any]) -> RawSample:
    """Read sample ``index``; photograph (with camera) and depth (with mask) are timed separately for files."""
    source = dataset.source
    if not isinstance(source, FileSource):
        made: RawSample = timed("make sample", lambda: source[index])
        return made
    frame = source.frames[index]
    sample: RawSample = timed("decode image", lambda: read_frame(replace(frame, depth=None, mask=None)))
    if frame.depth is not None:
        depth = timed("decode depth", lambda: depth_of_frame(frame, sample.image.shape[:2]))
        sample = replace(sample, depth=depth)
    if source.prepare is not None:
        prepare = source.prepare
        sample = timed("prepare", lambda: prepare(sample))
    return sample
