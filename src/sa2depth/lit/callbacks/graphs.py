"""The network replayed from CUDA graphs: forward and backward pass in training, forward pass in validation and test.

The graphs hold the memory of one step; that of scoring is given back before training goes on, that of training when it
ends. The callback stands behind those that change the network (frozen layers, averaged weights) and sees what they did.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from sa2depth.errors import ConfigError
from sa2depth.lit.callbacks.switch import Switch, checked, tell
from sa2depth.runtime.graphed import GraphedTraining
from sa2depth.runtime.replayed import Graphed


class CudaGraphs(L.Callback):
    """Captures the network of a `DepthModule`, in training at the first batch, in scoring each size that comes again.

    Args:
        cuda_graph: ``auto`` does on CUDA, where the network can be captured.

    Raises:
        ConfigError: ``cuda_graph`` is something else, or, when a stage begins, true where it cannot be done.
    """

    def __init__(self, cuda_graph: Switch = False) -> None:
        self.cuda_graph = checked("cuda_graph", cuda_graph)
        self._graphed: GraphedTraining | None = None
        self._captured_under: tuple[object, ...] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Refuse what cannot be captured, if it must be."""
        if self.cuda_graph is True:
            self._why_not_captured(trainer, pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Capture again when callbacks have changed something since: frozen or replaced tensors, modes of layers."""
        if not self.cuda_graph:
            return
        model = pl_module.model
        circumstances = (
            trainer.accumulate_grad_batches,
            tuple((t.data_ptr(), t.requires_grad) for t in (*model.parameters(), *model.buffers())),
            tuple((module.training, getattr(module, "momentum", None)) for module in model.modules()),
        )
        if circumstances == self._captured_under:
            return
        self._release(pl_module)  # their memory first
        self._captured_under = circumstances
        if reason := self._why_not_captured(trainer, pl_module.device):
            tell(pl_module.device, "training runs without CUDA graphs: %s", reason)
        else:
            self._graphed = GraphedTraining(model, required=self.cuda_graph is True)
            pl_module.graphed = self._graphed

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Give the graphs' memory back."""
        self._release(pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Replay from the second batch of a size on."""
        if not self.cuda_graph:
            return
        if pl_module.device.type != "cuda":
            if self.cuda_graph is True:
                raise ConfigError(f"cuda_graph=true: {pl_module.device} is no CUDA device; use auto or false")
            return

        def captured(shown: Tensor) -> Tensor:
            # without autocast's cache of weights, which ends with the batch that a graph is captured on
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
            with torch.autocast(
                "cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False
            ):
                depth: Tensor = pl_module.depth(shown)
                return depth

        pl_module.replayed = Graphed(captured, calls=2 if pl_module.protocol.flip else 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Give the memory back: training needs it."""
        pl_module.replayed = None

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _release(self, pl_module: Any) -> None:
        if self._graphed is not None:
            self._graphed.release()
        self._captured_under = self._graphed = pl_module.graphed = None

    def _why_not_captured(self, trainer: L.Trainer, device: torch.device) -> str:
        reason = ""
        if device.type != "cuda":
            reason = f"{device} is no CUDA device"
        elif trainer.accumulate_grad_batches != 1:
            reason = "a replay writes gradients where those of the batch before still lie (accumulate_grad_batches)"
        elif type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            # no subclasses: DeepSpeed's is one
            reason = f"{type(trainer.strategy).__name__} may move the weights"
        if reason and self.cuda_graph is True:
            raise ConfigError(f"cuda_graph=true: {reason}; use auto or false")
        return reason
