"""Compiling a network layer by layer."""

import logging

import torch
from torch import nn

from sa2depth.nn.traits import stated
from sa2depth.ops.runtime.triton import why_unavailable

_log = logging.getLogger(__name__)

# All layers share one code object (nn.Module's call), which holds a graph for each kind of layer, size and mode.
_GRAPHS = 256


def why_not_compiled(device: torch.device) -> str:
    """The reason why layers cannot be compiled for a device here; empty if they can."""
    return why_unavailable(device)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the layers of a network in place; each is translated at its first call with a new size.

    ``torch.compile`` fuses the norms, activations, residuals and casts between the matrix products and the kernels of
    ``ops``. Layers of one kind and size share a graph, so the encoder's 30 layers need only four; the state dict does
    not change. Each layer with the trait ``compile_unit`` is compiled separately (`sa2depth.nn.traits`). An encoder
    without such a layer is compiled as a whole; other parts without one stay eager, and a warning names them.

    Args:
        model: the network; a deep copy or a checkpoint of it is eager.
        backend: back end of ``torch.compile``.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * _GRAPHS)
    # DDPOptimizer would split graphs so that gradients are sent early; layers are small enough already.
    config.optimize_ddp = False
    for module in model.modules():
        if unit := stated(module, "compile_unit"):
            module.compile(fullgraph=unit is True and _of_one_package(module), dynamic=False, backend=backend)
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, nn.Module) and not compiled(encoder):
        encoder.compile(dynamic=False, backend=backend)
    silent = [
        f"{name} ({type(part).__name__})"
        for name, part in model.named_children()
        if next(part.parameters(), None) is not None and not compiled(part)
    ]
    if silent:
        _log.warning("not compiled, because no layer inside has compile_unit: %s", ", ".join(silent))


def _of_one_package(unit: nn.Module) -> bool:
    """True if all layers inside come from the unit's own package; others may break its graph."""
    packages = {type(module).__module__.partition(".")[0] for module in unit.modules()}
    return packages <= {type(unit).__module__.partition(".")[0], "torch", "timm"}


def compiled(module: nn.Module) -> bool:
    """True if any layer of a module was compiled."""
    return any(getattr(child, "_compiled_call_impl", None) is not None for child in module.modules())
