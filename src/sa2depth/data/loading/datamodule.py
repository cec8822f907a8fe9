"""Training, validation and test data of one experiment, as a Lightning data module."""

from collections.abc import Callable
from typing import Annotated, Any, cast

import cv2
import torch
from annotated_types import Ge
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from sa2depth.data.loading.dataset import Augment, Batch, DepthDataset, collate
from sa2depth.data.loading.samplers import EvaluationSampler, TrainingSampler, process_place
from sa2depth.data.sample import Source
from sa2depth.errors import ConfigError
from sa2depth.threads import usable_cores
from sa2depth.values import checked

SourceLike = Source | Callable[[], Source]


class DepthDataModule(LightningDataModule):
    """Training, validation and test sources and their loaders.

    Models are selected on ``val`` and reported on ``test``; `describe` tells if they share images.

    Args:
        train: source of the training images, or a function that builds it. Configurations give functions
            (``_partial_: true``): then `setup` looks for the files, and its error names them.
        val: the same for the images on which models are selected; None: no validation.
        test: the same for the images on which the result is reported; None: no test.
        augment: random change of training samples, `sa2depth.data.Augmentation`; None: none.
        batch_size: images of one optimiser step on all processes together, so that an experiment means the
            same on one GPU and on four.
        eval_batch_size: images of one evaluation step on one process; above 1 all images must have one size.
        num_workers: loader processes of each process; 0: load in the main process; None: one for each core
            available to this process, at most 8.
        seed: seed of order and augmentation.

    Raises:
        ConfigError: a number is out of range.
    """

    # OFFICIAL: the released training selects its models on the 654 test images, once for each of nine
    # metrics.
    @checked
    def __init__(
        self,
        train: SourceLike | None,
        val: SourceLike | None = None,
        test: SourceLike | None = None,
        augment: Augment | None = None,
        batch_size: Annotated[int, Ge(1)] = 8,
        eval_batch_size: Annotated[int, Ge(1)] = 1,
        num_workers: Annotated[int, Ge(0)] | None = None,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__()
        self._given = {"train": train, "val": val, "test": test}
        self._built: dict[str, Source] = {}
        self.augment = augment
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed = num_workers, seed

    def source(self, split: str) -> Source | None:
        """The source of ``train``, ``val`` or ``test``, built on first use; None if there is none.

        Raises:
            DataError: its files are missing.
        """
        given = self._given[split]
        if given is None:
            return None
        if split not in self._built:
            # A class has the methods of its instances: the protocol alone would take it for a source.
            if isinstance(given, Source) and not isinstance(given, type):
                self._built[split] = given
            else:
                self._built[split] = cast(Callable[[], Source], given)()
        return self._built[split]

    def setup(self, stage: str | None = None) -> None:
        """Build the sources of a stage: missing files are reported here, before anything is computed."""
        for split in _splits(stage):
            self.source(split)

    def counts(self, stage: str | None = None) -> dict[str, int]:
        """Number of images of every split that exists; ``stage`` as in `describe`."""
        sources = {split: self.source(split) for split in self._named(stage)}
        return {split: len(source) for split, source in sources.items() if source is not None}

    def describe(self, stage: str | None = None) -> str:
        """The printed plan: one line per split, and a line for each pair of splits that share images.

        Args:
            stage: ``fit`` (train and val), ``validate`` or ``test``; None: the splits that `setup` has prepared so far
                (an evaluation must not need the training files), or all three if there are none.
        """
        sources = {split: self.source(split) for split in self._named(stage)}
        lines = [
            f"{split:5s}  {'none' if source is None else source.describe()}"
            for split, source in sources.items()
        ]
        ids = {split: set(getattr(source, "ids", ())) for split, source in sources.items()}
        for one, other, meaning in (
            ("train", "val", "models are selected on images they were trained on"),
            ("train", "test", "the result is measured on training images"),
            ("val", "test", "models are selected on the images that the result is measured on"),
        ):
            if shared := len(ids.get(one, set()) & ids.get(other, set())):
                lines.append(f"note   {one} and {other} share {shared:,} images: {meaning}")
        return "\n".join(lines)

    def _named(self, stage: str | None) -> tuple[str, ...]:
        ready = tuple(split for split in self._given if split in self._built)
        return ready if stage is None and ready else _splits(stage)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented batches of equal size; images that do not fill a batch wait for another epoch.

        Raises:
            ConfigError: no training source, a batch that the processes cannot share, or too few images for
                one batch.
        """
        source = self.source("train")
        if source is None:
            raise ConfigError(
                "there is no training data: data.train is null; set it, or choose another data set"
            )
        rank, world = process_place()
        # OFFICIAL: int(batch / gpus) there: batch 8 on 3 GPUs trains with 6, on 16 GPUs with 0.
        if self.batch_size % world:
            raise ConfigError(
                f"data.batch_size={self.batch_size} cannot be shared evenly by {world} processes: choose a multiple"
            )
        sampler = TrainingSampler(len(source), self.seed, rank, world)
        if len(sampler) < self.batch_size // world:
            raise ConfigError(
                f"{len(source)} training images do not fill one batch of data.batch_size={self.batch_size}: "
                "choose a smaller batch"
            )
        dataset = DepthDataset(source, self.augment, self.seed, full_depth=True)
        return self._loader(dataset, sampler, self.batch_size // world, drop_last=True)

    def val_dataloader(self) -> Any:
        """Every validation image once, unaugmented, shared by the processes; empty without a source."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Any:
        """Every test image once, unaugmented, shared by the processes; empty without a source."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> Any:
        source = self.source(split)
        if source is None:
            return []
        dataset = DepthDataset(source, seed=self.seed)
        return self._loader(dataset, EvaluationSampler(len(source)), self.eval_batch_size, drop_last=False)

    def _loader(
        self, dataset: DepthDataset, sampler: Any, batch_size: int, *, drop_last: bool
    ) -> DataLoader[Batch]:
        workers = self._cores_each() if self.num_workers is None else self.num_workers
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            # Pinned memory belongs to CUDA; a CPU run on a machine with a GPU must not open the GPU for it.
            pin_memory=self._on_cuda(),
            drop_last=drop_last,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
        )

    def _cores_each(self) -> int:
        # only the processes on this machine share its cores
        here = getattr(getattr(self.trainer, "strategy", None), "num_processes", None)
        return min(8, usable_cores(here if isinstance(here, int) else process_place()[1]))

    def _on_cuda(self) -> bool:
        strategy = getattr(self.trainer, "strategy", None)
        device = getattr(strategy, "root_device", None)
        return torch.cuda.is_available() if device is None else device.type == "cuda"


def _splits(stage: str | None) -> tuple[str, ...]:
    stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}
    return ("train", "val", "test") if stage is None else stages[stage]


def _start_worker(_worker: int) -> None:
    # Each worker is one process already: OpenCV's own threads would only compete for the cores.
    cv2.setNumThreads(0)
