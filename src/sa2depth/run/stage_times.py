"""Stages of a run (`sa2depth.stages`) as Lightning sees them: validation inside a training, and who talks."""

from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from sa2depth.stages import stage


class ValidationStage(L.Callback):
    """Counts the seconds of validation (`sa2depth.stages`); the progress bar is Lightning's."""

    def __init__(self) -> None:
        self._stage = ExitStack()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The stage begins."""
        self._stage.enter_context(stage("validation", shown=False))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The stage ends."""
        self._stage.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> Any:
        """The stage ends early."""
        self._stage.close()


def is_first() -> bool:
    """Whether this is the first of the processes of a run: the one that talks."""
    return not getattr(rank_zero_only, "rank", 0)
