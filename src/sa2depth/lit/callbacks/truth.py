"""A callback that ends a training without valid depth in its batches, which a wrong depth scale causes."""

from typing import Any

import lightning as L

from sa2depth.errors import DataError
from sa2depth.masks import valid_mask

_BATCHES = 20  # from the first on: sparse truth may miss one window, but not that many in a row


class TruthSought(L.Callback):
    """Checks the first batches until one has a valid pixel."""

    def __init__(self) -> None:
        self._without: int | None = 0  # batches without truth; None once truth was seen

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Check a batch.

        Raises:
            DataError: the first batches, or all of an epoch, have no valid pixel.
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
            "check the depth scale (data.train.scale for your own data), for example with `sa2depth data check`"
        )
