"""Any image in, a Prediction out."""

from sa2depth.infer.images import ImageLike, to_tensor
from sa2depth.infer.prediction import Prediction
from sa2depth.infer.predictor import Predictor, pick_device
from sa2depth.infer.writers import FORMATS, unique_names, write

__all__ = [
    "FORMATS",
    "ImageLike",
    "Prediction",
    "Predictor",
    "pick_device",
    "to_tensor",
    "unique_names",
    "write",
]
