"""The order of the samples, on one process or many.

Lightning must not replace these samplers: ``Trainer(use_distributed_sampler=False)``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """Sample ``number`` in ``epoch``: together with the seed, this determines its augmentation.

    The epoch travels with the number because persistent workers do not learn it in any other way.
    """

    number: int
    epoch: int


def process_place() -> tuple[int, int]:
    """``(rank, world size)`` of this process; ``(0, 1)`` if nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class TrainingSampler(Sampler[Draw]):
    """A new permutation each epoch, distributed over the processes; an uneven remainder is left out.

    Args:
        size: number of samples.
        seed: the same on all processes.
        rank: number of this process; by default that of ``torch.distributed``, as is ``world``.
        world: number of processes.
    """

    def __init__(self, size: int, seed: int, rank: int | None = None, world: int | None = None) -> None:
        here = process_place()
        self.size, self.seed = size, seed
        self.rank = here[0] if rank is None else rank
        self.world = here[1] if world is None else world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world

    def __iter__(self) -> Iterator[Draw]:
        order = stream(self.seed, 0, self.epoch).permutation(self.size)
        for index in order[self.rank : len(self) * self.world : self.world]:
            yield Draw(int(index), self.epoch)


class EvaluationSampler(Sampler[int]):
    """Every ``world``-th sample from ``rank`` on: together the processes see each sample exactly once.

    Nothing is repeated to make the shares equal: a padded sampler counts some images twice, and the average
    is then no longer that of the data set.

    Args:
        size: number of samples.
        rank: number of this process; by default that of ``torch.distributed``, as is ``world``.
        world: number of processes.
    """

    def __init__(self, size: int, rank: int | None = None, world: int | None = None) -> None:
        here = process_place()
        rank, world = here[0] if rank is None else rank, here[1] if world is None else world
        self.indices = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def stream(seed: int, *place: int) -> np.random.Generator:
    """Random numbers that depend on ``seed`` and ``place`` alone; different places are independent."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))
