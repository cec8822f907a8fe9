"""Per-image depth errors under a named protocol, their average, and the simplest predictor to beat."""

from sa2depth.metrics.any_size import flip_average
from sa2depth.metrics.averaging import aggregate
from sa2depth.metrics.baselines import MedianDepthMap
from sa2depth.metrics.collection import DepthMetrics
from sa2depth.metrics.evaluation import Evaluation
from sa2depth.metrics.examples import Examples
from sa2depth.metrics.formulas import KNOWN_METRICS, METRICS, OFFICIAL_METRICS
from sa2depth.metrics.image import evaluate_image
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.protocol_files import load_protocol
from sa2depth.metrics.view import Sizes, View, cut_frame, predict_frame, view_of

__all__ = [
    "KNOWN_METRICS",
    "METRICS",
    "OFFICIAL_METRICS",
    "DepthMetrics",
    "Evaluation",
    "Examples",
    "MedianDepthMap",
    "Protocol",
    "Sizes",
    "View",
    "aggregate",
    "cut_frame",
    "evaluate_image",
    "flip_average",
    "load_protocol",
    "predict_frame",
    "view_of",
]
