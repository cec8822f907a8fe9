"""What the claims about operators are written with: the ways and cases of a test, results, references and errors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sa2depth.ops import use_backend

Function = Callable[..., Tensor]
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SMALL = "cpu emulated interpreted triton"
"""Ways for inputs that an emulator and an interpreter get through; `triton` is the interpreted kernels, compiled."""
EVERY = f"{SMALL} cuda"


def on(kinds: str, table: str = "", *, every_path: bool = False, inference: bool = False) -> Callable:
    """Mark a test method: the ways it runs, and the class's table of cases that it takes (as ``case``).

    A table has rows of ``(kinds, options)``, or longer ones; ``gpu`` stands for both ways on a GPU. With ``inference``
    a back end is tested that has no gradients.
    """

    def mark(method: Callable) -> Callable:
        method.tester = kinds.replace("gpu", "cuda triton").split(), table, every_path, inference
        return method

    return mark


def words(value: object) -> str:
    """A short name for a test's parameter."""
    if isinstance(value, dict):
        return ",".join(f"{key}={words(entry)}" for key, entry in value.items()) or "plain"
    if isinstance(value, tuple | list):
        return "x".join(map(words, value))
    return str(value).removeprefix("torch.")


def leaves(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


def elsewhere(tensor: Tensor, before: int, after: int = 0, around: float = 0.0) -> Tensor:
    """The same numbers, as dense in memory, between so many others."""
    dense = sorted(range(tensor.dim()), key=lambda i: (-tensor.stride(i), i))
    source, size = tensor.permute(dense), tensor.numel()
    memory = torch.full((before + size + after,), around, dtype=tensor.dtype, device=tensor.device)
    copied = memory[before : before + size].view(source.shape).copy_(source)
    return copied.permute([dense.index(i) for i in range(tensor.dim())])


def off_alignment(tensor: Tensor) -> Tensor:
    """The same numbers, as dense in memory, but not on a multiple of 16 bytes."""
    copied = elsewhere(tensor, 1)
    assert copied.data_ptr() % 16 or not tensor.numel()
    return copied


def among_nan(tensor: Tensor) -> Tensor:
    """The same numbers where reading a little too far gives NaN (whole numbers: 100)."""
    return elsewhere(tensor, 1024, 1024, torch.nan if tensor.is_floating_point() else 100)


def run(function: Function, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Output and gradients for a weighting that depends on the shape alone; its numbers are the same in all types."""
    output = function(*tensors)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return output, *torch.autograd.grad(output, wanted, weight.to(output))


def reference(function: Function, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The same in float64 by the torch path."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # grid_sample has no deterministic backward pass on a GPU
    exact = [t if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    with use_backend("torch"):
        results = run(function, exact)
    torch.use_deterministic_algorithms(deterministic)
    return results


def share(actual: Tensor, expected: Tensor) -> float:
    """Error as a share of the norm."""
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()
