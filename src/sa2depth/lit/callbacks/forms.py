"""The network in other forms: layers fused by ``torch.compile``, whole passes replayed from CUDA graphs.

Validation and tests run layers without compilation (`DepthModule.depth`), perhaps from graphs. Both callbacks come
after those that change the network (frozen layers, averaged weights) and see their changes.
"""

import logging
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from sa2depth.errors import ConfigError
from sa2depth.runtime.compiled import compile_layers, compiled, why_not_compiled
from sa2depth.runtime.graphed import GraphedTraining
from sa2depth.runtime.replayed import Graphed

_log = logging.getLogger(__name__)

_WORTH_COMPILING = 10_000  # steps: on an H100, 200 s of compilation save 19 ms a step of T, 33 of S, 52 of L

Switch = bool | Literal["auto"]


class CompiledLayers(L.Callback):
    """Compiles the layers of the network when a training begins.

    Args:
        compile: ``auto`` compiles if there are a CUDA device, a toolchain and at least 10,000 steps.

    Raises:
        ConfigError: ``compile`` is something else; or it is true, and a training begins that cannot be compiled.
    """

    def __init__(self, compile: Switch = False) -> None:
        self.compile = _checked("compile", compile)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compile once, if requested and possible."""
        model = pl_module.model
        if not self.compile or compiled(model):
            return
        reason, steps = why_not_compiled(pl_module.device), trainer.estimated_stepping_batches
        if not reason and self.compile == "auto" and steps < _WORTH_COMPILING:
            reason = (
                f"{steps:.0f} steps take less time than their compilation; compile=true compiles them anyway"
            )
        if reason and self.compile != "auto":
            raise ConfigError(f"compile=true: {reason}; use compile=auto or compile=false")
        if reason:
            _tell(pl_module.device, "layers are not compiled: %s", reason)
        else:
            once = "which takes about 200 s without progress"
            _tell(pl_module.device, "layers are compiled at the first steps, %s", once)
            compile_layers(model)


class CudaGraphs(L.Callback):
    """Captures the network of a `DepthModule`: in training at the first batch, in scoring at the second of each size.

    The graphs hold the memory of one step. Scoring frees it before training continues, and training when it ends.

    Args:
        cuda_graph: ``auto`` captures on CUDA if the network can be captured.

    Raises:
        ConfigError: ``cuda_graph`` is something else; or it is true, and a stage begins that cannot be captured.
    """

    def __init__(self, cuda_graph: Switch = False) -> None:
        self.cuda_graph = _checked("cuda_graph", cuda_graph)
        self._graphed: GraphedTraining | None = None
        self._captured_under: tuple[object, ...] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Raise an error if ``cuda_graph`` is true and the training cannot be captured."""
        if self.cuda_graph is True:
            self._why_not_captured(trainer, pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Capture again if callbacks have frozen or replaced tensors, or changed modes of layers."""
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
        self._release(pl_module)  # free the old graphs' memory first
        self._captured_under = circumstances
        if reason := self._why_not_captured(trainer, pl_module.device):
            _tell(pl_module.device, "training runs without CUDA graphs: %s", reason)
        else:
            self._graphed = GraphedTraining(model, required=self.cuda_graph is True)
            pl_module.graphed = self._graphed

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Free the graphs' memory."""
        self._release(pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Replay each size from its second batch on."""
        if not self.cuda_graph:
            return
        if pl_module.device.type != "cuda":
            if self.cuda_graph is True:
                raise ConfigError(f"cuda_graph=true: {pl_module.device} is no CUDA device; use auto or false")
            return

        def captured(shown: Tensor) -> Tensor:
            # autocast's cache of weights is off, because it ends with the batch on which a graph is captured
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
            with torch.autocast(
                "cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False
            ):
                depth: Tensor = pl_module.depth(shown)
                return depth

        pl_module.replayed = Graphed(captured, calls=2 if pl_module.protocol.flip else 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Free the memory for training."""
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
            reason = (
                "a replay overwrites the gradients of the previous batch (trainer.accumulate_grad_batches)"
            )
        elif type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            # subclasses are excluded: DeepSpeed's strategy is one
            reason = f"{type(trainer.strategy).__name__} may move the weights"
        if reason and self.cuda_graph is True:
            raise ConfigError(f"cuda_graph=true: {reason}; use auto or false")
        return reason


def _checked(option: str, value: Switch) -> Switch:
    if value not in (True, False, "auto"):
        raise ConfigError(f"{option}={value}: choose auto, true or false")
    return value


def _tell(device: torch.device, message: str, reason: str) -> None:
    # on a CPU nobody expects compilation or graphs
    _log.log(logging.INFO if device.type == "cuda" else logging.DEBUG, message, reason)
