"""What the operators' CUDA and Triton files ask of a GPU, and how they want their tensors."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

VECTOR_BYTES = 16
"""What a thread loads at once, at the most."""

_EMULATED_MULTIPROCESSORS, _EMULATED_SHARED_BYTES = 3, 227 * 1024  # where there is no GPU to ask


def ready(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned to the kernels' widest loads."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % VECTOR_BYTES == 0 else tensor.clone()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; a few where there is none to ask."""
    if device.type != "cuda":
        return _EMULATED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_bytes_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block can ask for."""
    if device.type != "cuda":
        return _EMULATED_SHARED_BYTES
    # torch's type stubs lack it
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 99 << 10))


def settled(number: int, choices: Iterable[int]) -> int:
    """The number itself; ``torch.compile`` for any sizes (``dynamic=True``) then binds its graph to this one.

    Args:
        number: one of the choices, perhaps symbolic.
        choices: the possible numbers.
    """
    if torch.compiler.is_compiling():
        for choice in choices:
            if number == choice:
                return choice
    return number
