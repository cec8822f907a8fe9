"""Guards for numbers that must not be rounded to bf16: coordinates, scores before ranking, recurrences."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sa2depth.errors import ConfigError, as_typed, nearest

FLOAT32_PRODUCTS = ("highest", "high", "medium")


def at_least_float32(tensor: Tensor) -> Tensor:
    """A float32 copy of a bfloat16 or float16 tensor; other tensors unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """A context with this ``torch.set_float32_matmul_precision``.

    Args:
        precision: ``highest`` computes products of float32 matrices in float32 (cuDNN's convolutions still use TF32,
            which is PyTorch's default), ``high`` in TF32 on CUDA, ``medium`` in bf16 where there is a kernel for that.

    Raises:
        ConfigError: if ``precision`` is none of these.
    """
    if precision not in FLOAT32_PRODUCTS:
        raise ConfigError(
            f"float32_matmul_precision={as_typed(precision)}: {nearest(str(precision), FLOAT32_PRODUCTS)}"
        )
    before = torch.get_float32_matmul_precision()
    if precision == before:  # setting it again would overwrite PyTorch's finer settings
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context that disables autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
