"""The LightningModule: one network, one loss, one protocol.

Normalisation, bins and the depth range belong to the network; frame, input size and flip averaging to the protocol.
This file only moves batches through both, so that training, evaluation and inference cannot disagree. Callbacks decide
how the network runs (compiled, from CUDA graphs) and which images are kept for pictures.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sa2depth.errors import ConfigError, ShapeError, UserError
from sa2depth.masks import valid_mask
from sa2depth.metrics import DepthMetrics, Evaluation, Protocol, View, predict_frame, view_of
from sa2depth.metrics.any_size import resize_map, stride_multiple
from sa2depth.models.sa2depth import DepthOutput

Batch = Mapping[str, Any]


class DepthModule(L.LightningModule):
    """Trains and evaluates a depth network.

    Args:
        model: ``image (B, 3, H, W) in [0, 1] -> DepthOutput``; its ``spec`` travels in every checkpoint.
        loss: ``(prediction, target, valid), each (B, 1, H, W) -> scalar``.
        optim: ``model -> Optimizer``.
        schedule: ``(optimizer, total_steps) -> LRScheduler``, stepped after every update.
        protocol: the rules by which validation and test images are scored.
        min_depth: metres; nearer truth is left out of the loss.
        max_depth: metres; farther truth is left out of the loss.

    Attributes:
        graphed: replaces ``model`` in training if a callback replays it from CUDA graphs; else None.
        replayed: replaces `depth` in validation and test if a callback replays it; else None.
        evaluation: measurements of the last test.
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
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.optim = optim
        self.schedule = schedule
        self.protocol = protocol
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.graphed: Callable[[Tensor], DepthOutput] | None = None
        self.replayed: Callable[[Tensor], Tensor] | None = None
        self.evaluation = Evaluation(protocol, ())
        self.val_metrics = DepthMetrics(protocol)
        self.test_metrics = DepthMetrics(protocol)
        self.save_hyperparameters({"spec": getattr(model, "spec", None), "protocol": protocol.name})

    def forward(self, image: Tensor) -> Tensor:
        """Depth of the protocol's frame of an image, under its input policy and flip averaging.

        Args:
            image: ``(B, 3, H, W)`` in [0, 1], of any size that the protocol allows.

        Returns:
            ``(B, 1, h, w)`` metres, at least float32.
        """
        return predict_frame(self.replayed or self.depth, image, self.protocol, stride_multiple(self.model))

    def depth(self, shown: Tensor) -> Tensor:
        """Depth ``(B, 1, H, W)`` in metres of an input ``(B, 3, H, W)`` of the network, without compiled layers."""
        # a compiled layer would be compiled again for each size of image
        with torch.compiler.set_stance("force_eager"):
            depth: Tensor = self.model(shown).depth
        return depth

    def score(self, batch: Batch) -> tuple[View, Tensor]:
        """The view of a batch under the protocol, and the prediction at the size of its truth.

        Args:
            batch: ``image (B, 3, H, W)``, ``depth (B, 1, H, W)`` metres (or fewer pixels), ``index (B,)``, ``id``.

        Raises:
            DataError: an image has no ground truth.
            ShapeError: the images do not fit the protocol's frame or input policy.
        """
        view = view_of(batch, self.protocol, stride_multiple(self.model))
        return view, resize_map(self.forward(view.image), view.sizes.frame)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        if self.loss is None:
            raise RuntimeError("this DepthModule was built for evaluation: it has no loss")
        (height, width), multiple = batch["image"].shape[-2:], getattr(self.model, "stride_multiple", 1)
        if height % multiple or width % multiple:
            crop = ",".join(str(max(side // multiple, 1) * multiple) for side in (height, width))
            raise ShapeError(
                f"training images are {height}x{width} (height x width), but both sides must be multiples of "
                f"{multiple}: set 'augment.crop=[{crop}]' (for generated scenes data.train.height and data.train.width)"
            )
        try:
            depth = (self.graphed or self.model)(batch["image"]).depth
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ShapeError(
                f"batch norms need more than one value per channel, but training images of {height}x{width} in batches "
                f"of {len(batch['image'])} give one: set a larger data.batch_size or larger images (augment.crop)"
            ) from error
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

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Score a batch of held-out images; callbacks get its ``view`` and ``prediction`` at `score`."""
        return self._measure(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Score a batch of test images, like `validation_step`."""
        return self._measure(batch, self.test_metrics)

    def _measure(self, batch: Batch, metrics: DepthMetrics) -> dict[str, Any]:
        view, prediction = self.score(batch)
        metrics.update(prediction, view)
        return {"view": view, "prediction": prediction}

    def on_validation_epoch_end(self) -> None:
        """Log means over all validation images of all processes."""
        self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log means over all test images and keep the ``evaluation``, which is the same on every process."""
        self._log_metrics("test", self.test_metrics)
        loader: Any = self.trainer.test_dataloaders
        self.evaluation = self.test_metrics.evaluation(
            split_images=len(loader.dataset), multiple=stride_multiple(self.model)
        )
        self.test_metrics.reset()

    def _log_metrics(self, stage: str, metrics: DepthMetrics) -> None:
        # compute() has already gathered over the processes, so every process logs the same numbers
        means = {f"{stage}/{name}": float(value) for name, value in metrics.compute().items()}
        self.log_dict(means, rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> Any:
        """Optimiser and per-step schedule.

        Raises:
            ConfigError: the weights are in half precision.
        """
        if self.optim is None or self.schedule is None:
            raise RuntimeError("this DepthModule was built for evaluation: it has no optimiser")
        if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in self.model.parameters()):
            raise ConfigError(
                "the weights are in half precision (trainer.precision=bf16-true or 16-true), but coordinates, ranks "
                "and the scan need float32: use bf16-mixed or 16-mixed"
            )
        optimizer = self.optim(self.model)
        steps = self.trainer.estimated_stepping_batches
        scheduler = self.schedule(optimizer, int(steps) if math.isfinite(steps) else -1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
