"""Callbacks of our own: how fast training goes, and a line an epoch for log files."""

import logging
import time
from typing import Any

import lightning as L

_LOG = logging.getLogger(__name__)


class Throughput(L.Callback):
    """Logs ``train/images_per_s``: images of all processes over wall-clock time, loading included.

    The mean runs over a window, so that neither the slow first step nor a validation in between shows for long.

    Args:
        window: training steps that the mean runs over.
    """

    def __init__(self, window: int = 20) -> None:
        self.window = window
        self._marks: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting anew: what lies between two epochs is not training."""
        self._marks = [time.perf_counter()]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate after each step."""
        self._marks = [*self._marks[-self.window :], time.perf_counter()]
        images = len(batch["image"]) * trainer.world_size * (len(self._marks) - 1)
        rate = images / max(self._marks[-1] - self._marks[0], 1e-9)
        pl_module.log("train/images_per_s", rate, prog_bar=True)


class EpochLog(L.Callback):
    """Logs one line an epoch, for log files and for terminals that show no progress bar."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loss, speed and the validation scores, if there are any."""
        if trainer.is_global_zero:
            shown = ("train/loss", "train/images_per_s", "val/abs_rel", "val/rmse", "val/d1")
            values = {
                name: trainer.callback_metrics[name] for name in shown if name in trainer.callback_metrics
            }
            line = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            _LOG.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, line)
