"""Per-image depth errors under a named protocol, their average, and the simplest predictor to beat."""

from sa2depth.metrics.baselines import MedianDepthMap
from sa2depth.metrics.collection import DepthMetrics, aggregate
from sa2depth.metrics.flip import flip_average
from sa2depth.metrics.formulas import KNOWN_METRICS, METRICS, OFFICIAL_METRICS
from sa2depth.metrics.image import evaluate_image
from sa2depth.metrics.input_size import cut_frame, cut_truth, predict_frame, prepare_input
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.protocol_files import load_protocol

__all__ = [
    "KNOWN_METRICS",
    "METRICS",
    "OFFICIAL_METRICS",
    "DepthMetrics",
    "MedianDepthMap",
    "Protocol",
    "aggregate",
    "cut_frame",
    "cut_truth",
    "evaluate_image",
    "flip_average",
    "load_protocol",
    "predict_frame",
    "prepare_input",
]
