"""Where a number must not be rounded to bf16: coordinates, scores before ranking, recurrences."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, else a float32 copy."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast leaves operators on the tensor's device alone."""
    return torch.autocast(tensor.device.type, enabled=False)
