"""A callback that estimates the time left for the command: training, validation, test, tables and pictures."""

import logging
import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

_LOG = logging.getLogger(__name__)

_STEPS = 100  # steps in the mean pace, so that it follows a machine that becomes busy
_FIRST = 2  # steps that compile, capture and choose algorithms
_FORWARD = 1 / 3  # share of a training step's time, until a validation was timed
# Tables, pictures, baseline and the photograph of the demonstration cannot be measured in advance.
_CLOSING_S = 4.0
_CLOSING_MEGAPIXEL_S = 0.03


@dataclass(frozen=True)
class Work:
    """The work left for a training, on one process.

    Attributes:
        batches: training batches left in this epoch.
        batches_later: training batches of later epochs.
        epochs_later: epochs after this one; the last may be a fraction.
        validations: runs over the validation images.
        images_val: validation images per run.
        images_test: test images.
        megapixels_closing: size of the images that baseline and tables read.
    """

    batches: float
    batches_later: float
    epochs_later: float
    validations: float
    images_val: int
    images_test: int
    megapixels_closing: float


@dataclass(frozen=True)
class Pace:
    """Seconds per unit of work, as measured last.

    Attributes:
        step: forward, backward and update of one batch.
        load: waiting for one batch in this epoch.
        load_later: waiting for one batch in later epochs, when samples may be kept in memory.
        epoch: the rest of an epoch, such as checkpoints.
        val_image: one image of a later validation.
        test_image: one test image.
    """

    step: float
    load: float
    load_later: float
    epoch: float
    val_image: float
    test_image: float

    def left(self, work: Work) -> tuple[float, float]:
        """Seconds of training with its validations, and of everything after it."""
        training = work.batches * (self.step + self.load) + work.batches_later * (self.step + self.load_later)
        training += work.epochs_later * self.epoch
        training += work.validations * work.images_val * self.val_image
        closing = _CLOSING_S + work.megapixels_closing * _CLOSING_MEGAPIXEL_S
        return training, work.images_test * self.test_image + closing


class TimeLeft(L.Callback):
    """Logs the time left after each epoch; without a terminal also in between.

    The estimate comes from measurements in this run, so it also holds on a busy machine. Only the time of tables and
    pictures, and of validation and test before the first validation, is a guess.

    Args:
        every_s: seconds between two lines if the output is not a terminal; in long runs a hundredth of the time left.
    """

    def __init__(self, every_s: float = 15.0) -> None:
        self.every_s = every_s
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._loads: deque[float] = deque(maxlen=_STEPS)
        self._seen = 0  # steps of this run
        self._pixels = 0  # of a training image
        self._epoch_s = 0.0  # time of the last epoch without its steps and validations
        self._new_load: float | None = None  # seconds to load an image that is not in memory yet
        self._val_image: float | None = None  # seconds of computing
        self._val_load = 0.0
        self._mark = self._said = self._epoch_began = time.monotonic()
        self._accounted = 0.0
        self._evaluated = [0.0, 0.0, 0]  # loading, computing, images

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start waiting: the first line comes after ``every_s`` seconds, if no epoch ends before."""
        self._said = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._mark = self._epoch_began = time.monotonic()
        self._accounted = 0.0
        if self._loads and _kept(trainer, "train"):
            self._new_load = self._new_load or fmean(self._loads) / _batch_size(trainer)
            self._loads.clear()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step as waiting for data."""
        self._loads.append(self._lap())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time the step; log the time left if the last line was long ago and there is no progress bar."""
        self._steps.append(self._lap())
        self._seen += 1
        self._pixels = batch["image"].shape[-2] * batch["image"].shape[-1]
        if self._seen == _FIRST + 1:
            # the first steps say nothing about later ones
            self._steps, self._loads = (
                deque(list(d)[-1:], maxlen=_STEPS) for d in (self._steps, self._loads)
            )
        if trainer.is_global_zero and self._seen >= 2 * _FIRST and not sys.stdout.isatty():
            self._say_now_and_then(trainer, batch_idx)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of the evaluation."""
        self._lap()
        self._evaluated = [0.0, 0.0, 0]

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Count the time since the last batch as waiting for data."""
        self._evaluated[0] += self._lap()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Time the batch."""
        self._evaluated[1] += self._lap()
        self._evaluated[2] += len(batch["image"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the pace of this validation for later ones and for the test."""
        load, compute, images = self._evaluated
        compute += self._lap()
        if images:
            if self._val_image is None or not _kept(trainer, "val"):
                self._val_load = load / images
            self._val_image = compute / images

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the time left."""
        self._epoch_s = max(0.0, time.monotonic() - self._epoch_began - self._accounted)
        if trainer.is_global_zero and self._steps:
            self._say(trainer, None)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After a training, log the time that the rest of the command takes."""
        if trainer.is_global_zero and self._steps:
            after = self._pace(trainer).left(self._work(trainer, None))[1]
            _LOG.info("test, tables and pictures: about %s", in_words(after))

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._mark = now - self._mark, now
        self._accounted += lap
        return lap

    def _say_now_and_then(self, trainer: L.Trainer, batch_idx: int) -> None:
        waited = time.monotonic() - self._said
        if waited >= self.every_s:
            left = sum(self._pace(trainer).left(self._work(trainer, batch_idx)))
            if math.isfinite(left) and waited >= left / 100:
                self._say(trainer, batch_idx)

    def _say(self, trainer: L.Trainer, batch_idx: int | None) -> None:
        work = self._work(trainer, batch_idx)
        training, after = self._pace(trainer).left(work)
        training = min([training, *_time_allowed(trainer)])
        self._said = time.monotonic()
        if not math.isfinite(training):
            return
        epochs = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
        place = "" if batch_idx is None else f", step {batch_idx + 1} of {trainer.num_training_batches}"
        _LOG.info(
            "epoch %d%s%s: about %s left (training %s, test and report %s)",
            *(trainer.current_epoch + 1, epochs, place, in_words(training + after)),
            *(in_words(training), in_words(after)),
        )

    def _pace(self, trainer: L.Trainer) -> Pace:
        step, load = fmean(self._steps), fmean(self._loads)
        batch = _batch_size(trainer)
        later = 0.0 if _kept(trainer, "train") else load
        if self._val_image is None:
            image = step / batch * _FORWARD + (self._new_load or load / batch)
            return Pace(step, load, later, self._epoch_s, image, image)
        again = 0.0 if _kept(trainer, "val") else self._val_load
        return Pace(
            step, load, later, self._epoch_s, self._val_image + again, self._val_image + self._val_load
        )

    def _work(self, trainer: L.Trainer, batch_idx: int | None) -> Work:
        """The work left after a batch of the current epoch, or (None) after the epoch and its validation."""
        per_epoch = trainer.num_training_batches
        here = 0 if batch_idx is None else per_epoch - batch_idx - 1
        epochs = (
            math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs - trainer.current_epoch - 1
        )
        later = max(0, epochs) * per_epoch
        if trainer.max_steps > 0:
            allowed = max(0, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
            here, later = min(here, allowed), min(later, max(0, allowed - here))
        epochs = later / per_epoch if per_epoch else 0
        data: Any = getattr(trainer, "datamodule", None)
        counts = data.counts() if hasattr(data, "counts") else {}
        size = getattr(data, "eval_batch_size", 1)
        val, test = (math.ceil(counts.get(split, 0) / trainer.world_size) for split in ("val", "test"))
        return Work(
            here,
            later,
            epochs,
            _validations(trainer, batch_idx, epochs),
            _limited(val, trainer.limit_val_batches, size),
            _limited(test, trainer.limit_test_batches, size),
            (counts.get("test", 0) + counts.get("train", 0)) * self._pixels / 1e6,
        )


def _limited(images: int, limit: float | int | None, batch: int) -> int:
    """Number of images within Lightning's limit, which is a number of batches or (float) a share of all."""
    return min(images, limit * batch) if isinstance(limit, int) else math.ceil(images * (limit or 0.0))


def _validations(trainer: L.Trainer, batch_idx: int | None, epochs: float) -> float:
    """Number of validations left, including this epoch's if it is still to come; ``inf`` if training has no end."""
    every, step = trainer.check_val_every_n_epoch, trainer.val_check_batch
    per_epoch = trainer.num_training_batches
    if every is None:  # counted in batches, through all epochs
        return epochs * per_epoch // step if step else 0
    if not math.isfinite(epochs):
        return math.inf
    first = trainer.current_epoch + (1 if batch_idx is None else 0)
    last = trainer.current_epoch + math.floor(epochs)
    runs = sum((epoch + 1) % every == 0 for epoch in range(first, last + 1))
    return runs * max(1, int(per_epoch // step)) if isinstance(step, int) and step else runs


def _batch_size(trainer: L.Trainer) -> int:
    data = getattr(trainer, "datamodule", None)
    return max(1, getattr(data, "batch_size", 1) // trainer.world_size)


def _kept(trainer: L.Trainer, split: str) -> bool:
    """Whether samples stay in memory after their first use, in a source that this process reads itself."""
    data = getattr(trainer, "datamodule", None)
    if data is None or getattr(data, "num_workers", None) != 0 or not hasattr(data, "source"):
        return False
    return bool(getattr(data.source(split), "keeps_samples", False))


def _time_allowed(trainer: L.Trainer) -> list[float]:
    timers: list[Any] = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return [left for timer in timers if (left := timer.time_remaining()) is not None]


def in_words(seconds: float) -> str:
    """A duration as people say it: ``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds / 10) * 10, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
