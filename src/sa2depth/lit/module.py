"""The LightningModule: one network, one loss, one protocol.

Normalisation, bins and the depth range belong to the network; frame, input size and mirror averaging to the protocol.
This file only moves batches through both, so that training, evaluation and inference cannot disagree.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed import all_gather_object, broadcast, get_world_size, is_available, is_initialized
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sa2depth.errors import ConfigError, DataError, ShapeError, UserError
from sa2depth.masks import valid_mask
from sa2depth.metrics import DepthMetrics, Protocol, cut_frame, cut_truth, predict_frame
from sa2depth.metrics.sizes import resize_map
from sa2depth.report import Evaluation, Examples, Sizes, offer_all
from sa2depth.runtime.compiled import compile_layers, compiled, why_not_compiled
from sa2depth.runtime.graphed import GraphedTraining
from sa2depth.runtime.replayed import Graphed

_log = logging.getLogger(__name__)

_WORTH_COMPILING = 10_000  # steps: 200 s of compilation on an H100 save 19 ms of each of T, 33 of S, 52 of L
_BATCHES_WITHOUT_TRUTH = 20  # in a row, from the first on: sparse truth may miss a window, but not so many

Batch = Mapping[str, Any]


class Scored(NamedTuple):
    """A batch as it is scored: ``image (B, 3, H, W)``, ``truth`` and ``prediction (B, 1, h, w)`` in metres.

    The sizes are equal where the truth has as many pixels as its image.
    """

    image: Tensor
    truth: Tensor
    prediction: Tensor
    sizes: Sizes


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
        examples: how many of the worst, the best and the spread test images to keep for the pictures of a report.
        compile: fuse the layers with ``torch.compile`` for training: ``auto`` does where there are a CUDA device, a
            toolchain and at least 10,000 steps. Validation and tests run the layers as they are, because their images
            come in many sizes.
        cuda_graph: replay the network's forward and backward pass from CUDA graphs in training, and its forward pass in
            validation and test, one graph for each size of image that comes again: ``auto`` does on CUDA, where the
            network can be captured. They hold the memory of one step.

    Raises:
        ConfigError: ``compile`` or ``cuda_graph`` is something else, or, at the beginning of a training, true where it
            cannot be done.
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
        compile: bool | Literal["auto"] = False,
        cuda_graph: bool | Literal["auto"] = False,
    ) -> None:
        super().__init__()
        for option, value in (("compile", compile), ("cuda_graph", cuda_graph)):
            if value not in (True, False, "auto"):
                raise ConfigError(f"{option}={value}: choose auto, true or false")
        self.model = model
        self.loss = loss
        self.optim = optim
        self.schedule = schedule
        self.protocol = protocol
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.compile_layers = compile
        self.cuda_graph = cuda_graph
        self._batches_without_truth: int | None = 0  # None: truth was seen
        self._graphed: GraphedTraining | None = None
        self._captured_under: tuple[object, ...] | None = None
        self._scored_network: Callable[[Tensor], Tensor] = self._depth
        self.examples = Examples(examples)
        self.evaluation = Evaluation(protocol, ())
        self._sizes: Counter[Sizes] = Counter()
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
        return self._predict(image)[0]

    def score(self, batch: Batch) -> Scored:
        """Predict a batch as the protocol says, at the size of the frames that it cuts out of the images.

        The truth is cut, never resampled; the prediction is brought back to the frame's size, and to that of a truth
        with fewer pixels than its image.

        Args:
            batch: ``image (B, 3, H, W)``, ``depth (B, 1, H, W)`` metres (or of fewer pixels), ``id``.

        Raises:
            DataError: an image has no ground truth.
            ShapeError: the images do not fit the protocol's frame or input policy.
        """
        if "depth" not in batch:
            raise DataError(
                f"{', '.join(batch['id'])}: no ground truth to score against. Choose a split that has it; "
                "`sa2depth predict` needs none"
            )
        image = cut_frame(batch["image"], self.protocol)
        native = (batch["image"].shape[-2], batch["image"].shape[-1])
        truth = cut_truth(batch["depth"], native, self.protocol)
        prediction, network = self._predict(batch["image"])
        compared = (truth.shape[-2], truth.shape[-1])
        # equal sizes but for truth with fewer pixels than its image, as phones have it
        return Scored(image, truth, resize_map(prediction, compared), Sizes(native, compared, network))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        if self.loss is None:
            raise RuntimeError("this DepthModule was built for evaluation: it has no loss")
        (height, width), multiple = batch["image"].shape[-2:], getattr(self.model, "stride_multiple", 1)
        if height % multiple or width % multiple:
            crop = ",".join(str(max(side // multiple, 1) * multiple) for side in (height, width))
            raise ShapeError(
                f"training images of {height}x{width} (height x width): both sides must be multiples of {multiple}; "
                f"set 'augment.crop=[{crop}]' (data.train.height and data.train.width of generated scenes)"
            )
        try:
            depth = (self._graphed or self.model)(batch["image"]).depth
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ShapeError(
                f"batch norms need more than one value a channel, and training images of {height}x{width} in batches "
                f"of {len(batch['image'])} give one: set a larger data.batch_size or larger images (augment.crop)"
            ) from error
        valid = valid_mask(batch["depth"], self.min_depth, self.max_depth)
        self._look_for_truth(batch, valid)
        loss: Tensor = self.loss(depth, batch["depth"], valid)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step}, on the images {', '.join(batch['id'])}: "
                "look at them with a viewer, lower optim.lr, or find the operation with debug=anomaly"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(depth))
        self.log("train/valid_share", valid.float().mean(), batch_size=len(depth))
        return loss

    def _look_for_truth(self, batch: Batch, valid: Tensor) -> None:
        """End a training whose batches so far hold nothing to learn from, which a wrong depth scale brings about.

        Raises:
            DataError: no batch yet had a valid pixel, and there were many, or all of an epoch.
        """
        if self._batches_without_truth is None:
            return
        if valid.any():
            self._batches_without_truth = None
            return
        self._batches_without_truth += 1
        in_epoch = math.inf if self._trainer is None else self.trainer.num_training_batches
        if self._batches_without_truth < min(_BATCHES_WITHOUT_TRUTH, in_epoch):
            return
        measured = batch["depth"][batch["depth"] > 0]
        found = (
            f"lie between {measured.min():.3g} and {measured.max():.3g} m" if len(measured) else "are all 0"
        )
        raise DataError(
            f"none of the first {self._batches_without_truth} training batches has a depth between "
            f"min_depth={self.min_depth:g} and max_depth={self.max_depth:g} m. Those of {', '.join(batch['id'])} "
            f"{found}: check the depth scale (of your own data data.train.scale), as `sa2depth data check` does"
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of held-out images."""
        scored = self.score(batch)
        self.val_metrics.update(scored.prediction, scored.truth, batch["index"], batch["id"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of test images and keep those that the report may show."""
        scored = self.score(batch)
        self.test_metrics.update(scored.prediction, scored.truth, batch["index"], batch["id"])
        self._sizes[scored.sizes] += len(scored.image)
        offer_all(self.examples, self.test_metrics, scored[:3], batch["index"].tolist(), batch["id"])

    def on_fit_start(self) -> None:
        """Compile the layers where that was asked for and can be done; refuse what cannot be trained.

        Raises:
            ConfigError: half-precision weights, or ``compile`` or ``cuda_graph`` where it cannot be done.
        """
        if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in self.model.parameters()):
            raise ConfigError(
                "weights in half precision (trainer.precision=bf16-true or 16-true): coordinates, ranks and the scan "
                "need float32; use bf16-mixed or 16-mixed"
            )
        if self.compile_layers and not compiled(self.model):
            self._compile()
        if self.cuda_graph is True:
            self._why_not_captured()

    def on_train_epoch_start(self) -> None:
        """Capture anew when callbacks have changed something since: frozen or replaced tensors, modes of layers."""
        if not self.cuda_graph:
            return
        tensors = (*self.model.parameters(), *self.model.buffers())
        circumstances = (
            self.trainer.accumulate_grad_batches,
            tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in tensors),
            tuple((module.training, getattr(module, "momentum", None)) for module in self.model.modules()),
        )
        if circumstances == self._captured_under:
            return
        self._release_graphs()  # their memory first
        self._captured_under = circumstances
        if reason := self._why_not_captured():
            self._say("training runs without CUDA graphs: %s", reason)
        else:
            self._graphed = GraphedTraining(self.model, required=self.cuda_graph is True)

    def on_fit_end(self) -> None:
        """Give the graphs' memory back."""
        self._release_graphs()

    def _release_graphs(self) -> None:
        if self._graphed is not None:
            self._graphed.release()
        self._captured_under = self._graphed = None

    def _why_not_captured(self) -> str:
        reason = ""
        if self.device.type != "cuda":
            reason = f"{self.device} is no CUDA device"
        elif self.trainer.accumulate_grad_batches != 1:
            reason = "a replay writes gradients where those of the batch before still lie (accumulate_grad_batches)"
        elif type(self.trainer.strategy) not in (
            SingleDeviceStrategy,
            DDPStrategy,
        ):  # no heirs: DeepSpeed's is one
            reason = f"{type(self.trainer.strategy).__name__} may move the weights"
        if reason and self.cuda_graph is True:
            raise ConfigError(f"cuda_graph=true: {reason}; use auto or false")
        return reason

    def _say(self, message: str, reason: str) -> None:
        # on a CPU nobody expects it
        _log.log(logging.INFO if self.device.type == "cuda" else logging.DEBUG, message, reason)

    def _compile(self) -> None:
        reason = why_not_compiled(self.device)
        steps = math.inf if self._trainer is None else self.trainer.estimated_stepping_batches
        if not reason and self.compile_layers == "auto" and steps < _WORTH_COMPILING:
            reason = (
                f"{steps:.0f} steps take less time than to compile them; compile=true does it all the same"
            )
        if reason and self.compile_layers != "auto":
            raise ConfigError(f"compile=true: {reason}; use compile=auto or compile=false")
        if reason:
            self._say("layers are not compiled: %s", reason)
        else:
            self._say("layers are compiled at the first steps, %s", "once: about 200 s without progress")
            compile_layers(self.model)

    def on_validation_epoch_start(self) -> None:
        """Every process evaluates the same network."""
        self._begin_scoring()

    def on_test_epoch_start(self) -> None:
        """Every process evaluates the same network; the pictures will show images from all over the data set.

        Raises:
            ConfigError: ``cuda_graph`` is true where there is no CUDA device.
        """
        self._begin_scoring()
        loader: Any = self.trainer.test_dataloaders
        self.examples = Examples(self.examples.count, len(loader.dataset))
        self._sizes = Counter()

    def on_validation_epoch_end(self) -> None:
        """Log means over all validation images of all processes."""
        self._scored_network = self._depth  # the graphs' memory is needed for training
        self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log means over all test images; ``evaluation`` keeps what is to be written, the same on every process."""
        self._scored_network = self._depth
        self._log_metrics("test", self.test_metrics)
        self.evaluation = Evaluation(
            self.protocol,
            self.test_metrics.table(),
            self.test_metrics.by_depth(),
            _summed(self._sizes),
            split_images=self.examples.total,
            multiple=self._multiple,
        )
        self.test_metrics.reset()

    def configure_optimizers(self) -> Any:
        """Optimiser and per-step schedule."""
        if self.optim is None or self.schedule is None:
            raise RuntimeError("this DepthModule was built for evaluation: it has no optimiser")
        optimizer = self.optim(self.model)
        steps = self.trainer.estimated_stepping_batches
        scheduler = self.schedule(optimizer, int(steps) if math.isfinite(steps) else -1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _predict(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Depth of the frame, and the size at which the network saw it."""
        seen: list[tuple[int, int]] = []

        def network(shown: Tensor) -> Tensor:
            seen.append((shown.shape[-2], shown.shape[-1]))
            return self._scored_network(shown)

        return predict_frame(network, image, self.protocol, self._multiple), seen[0]

    def _depth(self, shown: Tensor) -> Tensor:
        # as they are: a compiled layer would be translated again for each size of image
        with torch.compiler.set_stance("force_eager"):
            depth: Tensor = self.model(shown).depth
        return depth

    def _begin_scoring(self) -> None:
        self._share_buffers()
        if not self.cuda_graph:
            return
        if self.device.type == "cuda":
            # from the second batch of a size on
            self._scored_network = Graphed(self._captured_depth, calls=2 if self.protocol.flip else 1)
        elif self.cuda_graph is True:
            raise ConfigError(f"cuda_graph=true: {self.device} is no CUDA device; use auto or false")

    def _captured_depth(self, shown: Tensor) -> Tensor:
        """`_depth` without autocast's cache of weights, which ends with the batch that a graph is captured on."""
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
            return self._depth(shown)

    @property
    def _multiple(self) -> int:
        """Sides of what the network is shown when it is scored are multiples of this; 32 where it says none."""
        return int(getattr(self.model, "stride_multiple", 32))

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


def _summed(sizes: Counter[Sizes]) -> Counter[Sizes]:
    """Counts of all processes together."""
    if not (is_available() and is_initialized()):
        return sizes
    parts: list[Any] = [None] * get_world_size()
    all_gather_object(parts, sizes)
    return sum(parts, Counter())
