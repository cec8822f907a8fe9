"""Per-image depth errors under a named protocol, their average, and the simplest predictor to beat."""

from sa2depth.metrics.baselines import MedianDepthMap
from sa2depth.metrics.collection import DepthMetrics, aggregate
from sa2depth.metrics.flip import flip_average
from sa2depth.metrics.image import METRICS, evaluate_image
from sa2depth.metrics.protocol import Protocol, load_protocol

__all__ = [
    "METRICS",
    "DepthMetrics",
    "MedianDepthMap",
    "Protocol",
    "aggregate",
    "evaluate_image",
    "flip_average",
    "load_protocol",
]
