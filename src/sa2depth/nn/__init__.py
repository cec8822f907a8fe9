"""The paper's layers, one idea a file. Maps are ``(B, C, H, W)`` unless a docstring says otherwise."""

from sa2depth.nn.attention import FlexibleAttention, Modulator
from sa2depth.nn.bins import DepthFromBins, bin_centers_from_logits, expected_depth
from sa2depth.nn.block import SelectiveAttentionBlock
from sa2depth.nn.drop_path import DropPath
from sa2depth.nn.feed_forward import GatedFeedForward
from sa2depth.nn.fusion import SelectiveFusion, SumFusion
from sa2depth.nn.merged import MergesWeights
from sa2depth.nn.mlp import Mlp
from sa2depth.nn.norm import ChannelNorm, TokenNorm
from sa2depth.nn.pointwise import PointwiseConv, pointwise
from sa2depth.nn.position import PositionConv
from sa2depth.nn.scan import SelectiveScan2d
from sa2depth.nn.upsample import Upsample
from sa2depth.nn.window_attention import WindowAttention

__all__ = [
    "ChannelNorm",
    "DepthFromBins",
    "DropPath",
    "FlexibleAttention",
    "GatedFeedForward",
    "MergesWeights",
    "Mlp",
    "Modulator",
    "PointwiseConv",
    "PositionConv",
    "SelectiveAttentionBlock",
    "SelectiveFusion",
    "SelectiveScan2d",
    "SumFusion",
    "TokenNorm",
    "Upsample",
    "WindowAttention",
    "bin_centers_from_logits",
    "expected_depth",
    "pointwise",
]
