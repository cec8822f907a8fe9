"""The network in compiled form, layer by layer."""

import logging

import torch
from torch import nn

from sa2depth.nn.traits import stated
from sa2depth.ops.runtime.triton import why_unavailable

_log = logging.getLogger(__name__)

# One code object (nn.Module's call) serves all layers, and each kind at each size in each mode has its own graph.
_GRAPHS = 256


def why_not_compiled(device: torch.device) -> str:
    """Why layers cannot be compiled for a device here; empty if they can."""
    return why_unavailable(device)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the layers of a network in place; each is translated when it first sees a size.

    Norms, activations, residuals and casts between the matrix products and the kernels of ``ops`` are fused with
    ``torch.compile``. Layers of one kind and size share a graph, so that 30 layers of the encoder cost four; the state
    dict stays as it is. What is a layer says the layer itself (``compile_unit``, see `sa2depth.nn.traits`). An encoder
    in which none does so is compiled as a whole; other such parts stay as they are, and one line names them.

    Args:
        model: the network; stays usable in eager form through a deep copy or a checkpoint.
        backend: of ``torch.compile``.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * _GRAPHS)
    # DistributedDataParallel needs what is compiled in parts, to send gradients early: layers are parts.
    config.optimize_ddp = False
    for module in model.modules():
        if unit := stated(module, "compile_unit"):
            module.compile(fullgraph=unit is True and _of_one_house(module), dynamic=False, backend=backend)
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, nn.Module) and not compiled(encoder):
        encoder.compile(dynamic=False, backend=backend)
    silent = [
        f"{name} ({type(part).__name__})"
        for name, part in model.named_children()
        if next(part.parameters(), None) is not None and not compiled(part)
    ]
    if silent:
        _log.warning("not compiled, as no layer in it says compile_unit: %s", ", ".join(silent))


def _of_one_house(unit: nn.Module) -> bool:
    """Whether all inside is of the unit's own package: for a stranger's layer it can promise no unbroken graph."""
    houses = {type(module).__module__.partition(".")[0] for module in unit.modules()}
    return houses <= {type(unit).__module__.partition(".")[0], "torch", "timm"}


def compiled(module: nn.Module) -> bool:
    """Whether any layer of a module was compiled."""
    return any(getattr(child, "_compiled_call_impl", None) is not None for child in module.modules())
