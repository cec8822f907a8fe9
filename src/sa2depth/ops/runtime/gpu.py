"""Properties of a GPU and preparation of tensors for the operators' CUDA and Triton files."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

VECTOR_BYTES = 16
"""The most that a thread loads at once."""

_EMULATED_MULTIPROCESSORS, _EMULATED_SHARED_BYTES = 3, 227 * 1024  # for the CPU


def ready(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and aligned to the kernels' widest loads; copied only if it is not."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % VECTOR_BYTES == 0 else tensor.clone()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU; a small number for other devices."""
    if device.type != "cuda":
        return _EMULATED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_bytes_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block can have at most."""
    if device.type != "cuda":
        return _EMULATED_SHARED_BYTES
    # torch's type stubs lack it
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 99 << 10))


def settled(number: int, choices: Iterable[int]) -> int:
    """The number itself; a graph that ``torch.compile`` traces with ``dynamic=True`` is then bound to its value.

    Args:
        number: one of the choices, perhaps symbolic.
        choices: the possible numbers.
    """
    if torch.compiler.is_compiling():
        for choice in choices:
            if number == choice:
                return choice
    return number
