"""The operators as plain data: the back ends of each, fastest first, and an example of its inputs.

Each operator's folder registers its operator; the choice of a back end, self-test, trust, ``sa2depth doctor`` and the
tests iterate over ``OPERATORS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sa2depth.resources import csrc_dir

Example = tuple[Callable[[], Tensor], list[Tensor]]
"""The public function applied to some inputs, and the inputs that require gradients."""


def takes_all(*arguments: object) -> str:
    """``why_not`` of a back end that takes all inputs of its operator."""
    return ""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: one of ``sa2depth.ops.choice.NAMES``, such as ``torch``, ``cpu`` or ``cuda``.
        run: computes the operator.
        why_not: takes the arguments of ``run`` and returns the reason why the back end cannot take them; empty if it
            can.
        sources: files on which its results depend: a self-test is valid until one of them changes.
        on_request: only a choice by name uses it, for comparisons; ``auto`` never does.
        inference_only: it has no backward pass, so it is skipped if a gradient is needed.
    """

    name: str
    run: Callable[..., Tensor]
    why_not: Callable[..., str] = takes_all
    sources: tuple[Path, ...] = ()
    on_request: bool = False
    inference_only: bool = False


@dataclass(frozen=True)
class Operator:
    """An operator and its implementations.

    Attributes:
        name: its name in `sa2depth.ops`.
        backends: fastest first; the last one is ``torch``, the oracle of the others, which takes all inputs.
        example: ``(device, dtype) ->`` the public function on small inputs, and the inputs that require gradients.
    """

    name: str
    backends: tuple[Backend, ...]
    example: Callable[[torch.device, torch.dtype], Example]

    def backend(self, name: str) -> Backend:
        """The implementation with this name.

        Raises:
            KeyError: if there is none.
        """
        return {backend.name: backend for backend in self.backends}[name]


OPERATORS: dict[str, Operator] = {}
"""All operators, by name."""


def register(operator: Operator) -> Operator:
    """Add an operator to ``OPERATORS``; returns it."""
    OPERATORS[operator.name] = operator
    return operator


def kernel_sources(*patterns: str) -> tuple[Path, ...]:
    """Files below ``csrc/``, such as ``dcnv3/*``; none in an installation that lacks them."""
    try:
        folder = csrc_dir()
    except FileNotFoundError:
        return ()
    return tuple(file for pattern in patterns for file in sorted(folder.glob(pattern)))


def drawing(seed: int, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """For examples: a function from a shape to normally distributed numbers, equal on all devices and dtypes."""
    generator = torch.Generator().manual_seed(seed)
    # drawn in float32, so that all precisions start from the same numbers
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu").to(device, dtype)


def as_leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """For examples: the tensors as leaves that require gradients."""
    return [tensor.detach().requires_grad_() for tensor in tensors]
