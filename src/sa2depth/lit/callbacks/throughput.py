"""The speed of training in images per second, on the progress bar, in the log and for `EpochLog`.

Lightning's ``ThroughputMonitor`` shows it neither on the bar nor to other callbacks, waits for the GPU after every
step, and warns about each module that does not count its operations.
"""

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs ``train/images_per_s``: images of all processes over wall-clock time, loading included.

    It is a mean over a window, so that neither the slow first step nor a validation affects it for long.

    Args:
        window: number of training steps in the mean.
    """

    def __init__(self, window: int = 20) -> None:
        self.window = window
        self._marks: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting again, because the time between two epochs is not training."""
        self._marks = [time.perf_counter()]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate after each step."""
        self._marks = [*self._marks[-self.window :], time.perf_counter()]
        images = len(batch["image"]) * trainer.world_size * (len(self._marks) - 1)
        rate = images / max(self._marks[-1] - self._marks[0], 1e-9)
        pl_module.log("train/images_per_s", rate, prog_bar=True)
