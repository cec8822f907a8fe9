"""Operators: public functions on tensors, each with a pure-torch path that is the oracle of the faster ones."""

from sa2depth.ops.choice import use_backend
from sa2depth.ops.dcnv3 import dcnv3, dcnv3_fused
from sa2depth.ops.depthwise_conv import depthwise_conv
from sa2depth.ops.gated_conv import gated_conv
from sa2depth.ops.layer_norm import layer_norm
from sa2depth.ops.rank_attention import RANKS, rank_attention
from sa2depth.ops.runtime import cpp as cpu
from sa2depth.ops.selective_scan import selective_scan_2d

__all__ = [
    "RANKS",
    "cpu",
    "dcnv3",
    "dcnv3_fused",
    "depthwise_conv",
    "gated_conv",
    "layer_norm",
    "rank_attention",
    "selective_scan_2d",
    "use_backend",
]
