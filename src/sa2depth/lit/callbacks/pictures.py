"""A callback that keeps test images for a report's pictures: the worst, the best and some spread over the split."""

from typing import Any

import lightning as L

from sa2depth.metrics import Examples
from sa2depth.metrics.examples import offer_all


class Pictures(L.Callback):
    """Keeps example images of the last test of a `DepthModule`.

    Args:
        count: images of each kind.

    Attributes:
        examples: examples of this process.
    """

    def __init__(self, count: int = 6) -> None:
        self.examples = Examples(count)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start without examples, for the number of images of this test."""
        loader: Any = trainer.test_dataloaders
        self.examples = Examples(self.examples.count, len(loader.dataset))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the images that are candidates now."""
        offer_all(self.examples, pl_module.test_metrics, outputs["view"], outputs["prediction"])


def kept_examples(trainer: L.Trainer) -> Examples:
    """The images of this process that the pictures of its last test may show."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback.examples for callback in callbacks if isinstance(callback, Pictures))
