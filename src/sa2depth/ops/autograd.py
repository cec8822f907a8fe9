"""Autograd for the operators' fast back ends.

A fast back end is a pair of ``torch.library`` custom operators, forward and backward; neither has a second derivative.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CustomOp = Any  # torch.library's own class has no public name


def wants_gradient(*arguments: Any) -> bool:
    """True if autograd needs a gradient for any of the arguments."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def refuse_second_derivative(operator: str, backend: str, *, torch_has: bool = True) -> Callable[..., None]:
    """A gradient formula that raises an error; its message says whether the torch path has a second derivative."""
    where = f"on the back end {backend}; use_backend('torch') has" if torch_has else "on any back end"

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(f"{operator} has no second derivative {where}")

    return refuse
