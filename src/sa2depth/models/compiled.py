"""The network in compiled form, layer by layer."""

import torch
from torch import nn

from sa2depth.models.decoders import ConvBlock
from sa2depth.models.encoders import InternImage
from sa2depth.models.encoders.internimage import Downsample, Layer, StageNorm, Stem
from sa2depth.models.heads import BinHead, ConvHead, ScanHead
from sa2depth.nn import DepthFromBins, SelectiveAttentionBlock, Upsample
from sa2depth.ops.triton.machine import why_unavailable

_LAYERS = (
    *(Stem, Layer, StageNorm, Downsample),
    *(SelectiveAttentionBlock, ConvBlock, Upsample),
    *(BinHead, ScanHead, ConvHead, DepthFromBins),
)
# One code object (nn.Module's call) serves all layers, and each kind at each size in each mode has its own graph.
_GRAPHS = 256


def why_not_compiled(device: torch.device) -> str:
    """Why layers cannot be compiled for a device here; empty if they can."""
    return why_unavailable(device)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the layers of a network in place; each is translated when it first sees a size.

    Norms, activations, residuals and casts between the matrix products and the kernels of ``ops`` are fused with
    ``torch.compile``. Layers of one kind and size share a graph, so that 30 layers of the encoder cost four; the state
    dict stays as it is. An encoder other than InternImage is compiled as a whole.

    Args:
        model: the network; stays usable in eager form through a deep copy or a checkpoint.
        backend: of ``torch.compile``.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * _GRAPHS)
    # DistributedDataParallel needs what is compiled in parts, to send gradients early: layers are parts.
    config.optimize_ddp = False
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, nn.Module) and not isinstance(encoder, InternImage):
        encoder.compile(dynamic=False, backend=backend)
    for module in model.modules():
        if isinstance(module, _LAYERS):
            module.compile(fullgraph=True, dynamic=False, backend=backend)


def compiled(module: nn.Module) -> bool:
    """Whether any layer of a module was compiled."""
    return any(getattr(child, "_compiled_call_impl", None) is not None for child in module.modules())
