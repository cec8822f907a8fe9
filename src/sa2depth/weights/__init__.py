"""Reading, converting and saving weights."""

from sa2depth.weights.checkpoint import Checkpoint, load_model, read_checkpoint, save_model
from sa2depth.weights.official import architecture_of, encoder_from_internimage, from_official
from sa2depth.weights.pretrained import LoadReport, load_encoder
from sa2depth.weights.resume import TrainingState, read_training_state

__all__ = [
    "Checkpoint",
    "LoadReport",
    "TrainingState",
    "architecture_of",
    "encoder_from_internimage",
    "from_official",
    "load_encoder",
    "load_model",
    "read_checkpoint",
    "read_training_state",
    "save_model",
]
