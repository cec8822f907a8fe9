"""Stages of a run (`sa2depth.stages`) under Lightning: validation inside a training, and the process that prints."""

from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from sa2depth.stages import stage


class ValidationStage(L.Callback):
    """Counts the seconds of validation (`sa2depth.stages`); Lightning shows the progress bar."""

    def __init__(self) -> None:
        self._stage = ExitStack()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the stage."""
        self._stage.enter_context(stage("validation", shown=False))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the stage."""
        self._stage.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> Any:
        """End the stage early."""
        self._stage.close()


def is_first() -> bool:
    """Whether this is the first process of a run, which is the one that prints."""
    return not getattr(rank_zero_only, "rank", 0)
