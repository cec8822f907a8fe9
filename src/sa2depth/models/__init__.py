"""The depth model with its encoders, decoders and heads, and building them from a specification."""

from sa2depth.models.build import UntrustedError, build_model, create_model
from sa2depth.models.decoders import ConvDecoder, SelectiveAttentionDecoder
from sa2depth.models.heads import BinHead, ConvHead, ScanHead, UniformBins
from sa2depth.models.presets import PRESETS
from sa2depth.models.sa2depth import DepthOutput, SA2Depth

__all__ = [
    "PRESETS",
    "BinHead",
    "ConvDecoder",
    "ConvHead",
    "DepthOutput",
    "SA2Depth",
    "ScanHead",
    "SelectiveAttentionDecoder",
    "UniformBins",
    "UntrustedError",
    "build_model",
    "create_model",
]
