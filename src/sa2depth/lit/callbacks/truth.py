"""A training whose batches hold nothing to learn from ends, which a wrong depth scale brings about."""

from typing import Any

import lightning as L

from sa2depth.errors import DataError
from sa2depth.masks import valid_mask

_BATCHES = 20  # in a row, from the first on: sparse truth may miss a window, but not so many


class TruthSought(L.Callback):
    """Looks for a valid pixel in the first batches, until there is one."""

    def __init__(self) -> None:
        self._without: int | None = 0  # batches; None: truth was seen

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look at a batch.

        Raises:
            DataError: no batch yet had a valid pixel, and there were many, or all of an epoch.
        """
        if self._without is None:
            return
        if valid_mask(batch["depth"], pl_module.min_depth, pl_module.max_depth).any():
            self._without = None
            return
        self._without += 1
        if self._without < min(_BATCHES, trainer.num_training_batches):
            return
        measured = batch["depth"][batch["depth"] > 0]
        found = (
            f"lie between {measured.min():.3g} and {measured.max():.3g} m" if len(measured) else "are all 0"
        )
        names = ", ".join(batch["id"])
        raise DataError(
            f"none of the first {self._without} training batches has a depth between "
            f"min_depth={pl_module.min_depth:g} and max_depth={pl_module.max_depth:g} m. Those of {names} {found}: "
            "check the depth scale (of your own data data.train.scale), as `sa2depth data check` does"
        )
