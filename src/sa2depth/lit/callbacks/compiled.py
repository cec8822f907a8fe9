"""Layers fused with ``torch.compile`` for training; validation and tests run them as they are (`DepthModule.depth`)."""

from typing import Any

import lightning as L

from sa2depth.errors import ConfigError
from sa2depth.lit.callbacks.switch import Switch, checked, tell
from sa2depth.runtime.compiled import compile_layers, compiled, why_not_compiled

_WORTH_COMPILING = 10_000  # steps: 200 s of compilation on an H100 save 19 ms of each of T, 33 of S, 52 of L


class CompiledLayers(L.Callback):
    """Compiles the layers of the network when a training begins.

    Args:
        compile: ``auto`` does where there are a CUDA device, a toolchain and at least 10,000 steps.

    Raises:
        ConfigError: ``compile`` is something else, or, at the beginning of a training, true where it cannot be done.
    """

    def __init__(self, compile: Switch = False) -> None:
        self.compile = checked("compile", compile)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compile, once, where that was asked for and can be done."""
        model = pl_module.model
        if not self.compile or compiled(model):
            return
        reason, steps = why_not_compiled(pl_module.device), trainer.estimated_stepping_batches
        if not reason and self.compile == "auto" and steps < _WORTH_COMPILING:
            reason = (
                f"{steps:.0f} steps take less time than to compile them; compile=true does it all the same"
            )
        if reason and self.compile != "auto":
            raise ConfigError(f"compile=true: {reason}; use compile=auto or compile=false")
        if reason:
            tell(pl_module.device, "layers are not compiled: %s", reason)
        else:
            once = "once: about 200 s without progress"
            tell(pl_module.device, "layers are compiled at the first steps, %s", once)
            compile_layers(model)
