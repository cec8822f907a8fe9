"""The LightningModule: one network, one loss, one protocol.

Normalisation, bins and the depth range belong to the network; this file only moves batches through it, so that
training, evaluation and inference cannot disagree.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed import broadcast, is_available, is_initialized
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sa2depth.errors import UserError
from sa2depth.masks import valid_mask
from sa2depth.metrics import DepthMetrics, Protocol, flip_average

Batch = Mapping[str, Any]


class Example(NamedTuple):
    """A test image for the pictures: ``image (3, H, W) in [0, 1]``, ``truth`` and ``prediction (H, W)`` in metres."""

    image: Tensor
    truth: Tensor
    prediction: Tensor
    id: str


class DepthModule(L.LightningModule):
    """Trains and evaluates a depth network.

    Args:
        model: ``image (B, 3, H, W) in [0, 1] -> DepthOutput``; its ``spec`` travels in every checkpoint.
        loss: ``(prediction, target, valid), each (B, 1, H, W) -> scalar``.
        optim: ``model -> Optimizer``.
        schedule: ``(optimizer, total_steps) -> LRScheduler``, stepped after every update.
        protocol: how validation and test images are scored.
        min_depth: metres; nearer truth is left out of the loss.
        max_depth: metres; farther truth is left out of the loss.
        examples: how many test images to keep, with truth and prediction, for the pictures of a report.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | None = None,
        optim: Callable[[nn.Module], Optimizer] | None = None,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
        *,
        protocol: Protocol,
        min_depth: float = 1e-3,
        max_depth: float = math.inf,
        examples: int = 6,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.optim = optim
        self.schedule = schedule
        self.protocol = protocol
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.example_count = examples
        self.examples: list[Example] = []
        self._shown: set[int] | None = None
        self.test_table: list[dict[str, Any]] = []
        self.frame = (0, 0)
        self.val_metrics = DepthMetrics(protocol)
        self.test_metrics = DepthMetrics(protocol)
        self.save_hyperparameters({"spec": getattr(model, "spec", None), "protocol": protocol.name})

    def forward(self, image: Tensor) -> Tensor:
        """Depth in metres, ``(B, 1, H, W)``, averaged with the mirrored image's where the protocol says so."""
        depth: Tensor = self.model(image).depth
        if self.protocol.flip:
            mirrored = self.model(image.flip(-1)).depth.flip(-1)
            depth = flip_average(depth, mirrored)
        return depth

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        if self.loss is None:
            raise RuntimeError("this DepthModule was built for evaluation: it has no loss")
        depth = self.model(batch["image"]).depth
        valid = valid_mask(batch["depth"], self.min_depth, self.max_depth)
        loss: Tensor = self.loss(depth, batch["depth"], valid)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step}, on the images {', '.join(batch['id'])}: "
                "look at them with a viewer, lower optim.lr, or find the operation with debug=anomaly"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(depth))
        self.log("train/valid_share", valid.float().mean(), batch_size=len(depth))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of held-out images."""
        self.val_metrics.update(self(batch["image"]), batch["depth"], batch["index"], batch["id"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of test images."""
        depth = self(batch["image"])
        self.frame = (depth.shape[-2], depth.shape[-1])
        self.test_metrics.update(depth, batch["depth"], batch["index"], batch["id"])
        parts = (batch[key] for key in ("image", "depth", "id", "index"))
        for image, truth, name, index, prediction in zip(*parts, depth, strict=True):
            if self._shows(int(index)):
                self.examples.append(
                    Example(image.float().cpu(), truth[0].cpu(), prediction[0].float().cpu(), name)
                )

    def on_validation_epoch_start(self) -> None:
        """Every process evaluates the same network."""
        self._share_buffers()

    def on_test_epoch_start(self) -> None:
        """Every process evaluates the same network; the pictures will show images from all over the data set."""
        self._share_buffers()
        loader: Any = self.trainer.test_dataloaders
        images = len(loader.dataset)
        spread = (i * (images - 1) // max(self.example_count - 1, 1) for i in range(self.example_count))
        # the first process draws them, and it holds every world-size-th image
        self._shown = {index - index % self.trainer.world_size for index in spread}

    def on_validation_epoch_end(self) -> None:
        """Log means over all validation images of all processes."""
        self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log means over all test images; ``test_table`` keeps the rows for whoever writes the tables."""
        self._log_metrics("test", self.test_metrics)
        self.test_table = self.test_metrics.table()
        self.test_metrics.reset()

    def configure_optimizers(self) -> Any:
        """Optimiser and per-step schedule."""
        if self.optim is None or self.schedule is None:
            raise RuntimeError("this DepthModule was built for evaluation: it has no optimiser")
        optimizer = self.optim(self.model)
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _shows(self, index: int) -> bool:
        if self._shown is None:
            return len(self.examples) < self.example_count
        return index in self._shown

    def _log_metrics(self, stage: str, metrics: DepthMetrics) -> None:
        # compute() has gathered over the processes already: every process logs the same numbers
        means = {f"{stage}/{name}": float(value) for name, value in metrics.compute().items()}
        self.log_dict(means, rank_zero_only=False, sync_dist=False)

    def _share_buffers(self) -> None:
        """Send the first process's batch-norm statistics to the others.

        DDP would do so before every forward pass, which hangs when processes hold unequal numbers of images.
        """
        if is_available() and is_initialized():
            for buffer in self.model.buffers():
                broadcast(buffer, src=0)
