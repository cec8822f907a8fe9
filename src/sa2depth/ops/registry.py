"""The operators as plain data: what each one runs on, fastest first, and an example of its inputs.

Each operator's folder registers itself; the choice of a back end, self-test, trust, ``sa2depth doctor`` and the tests
go through ``OPERATORS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sa2depth.resources import csrc_dir

Example = tuple[Callable[[], Tensor], list[Tensor]]
"""The public function on some inputs, and those of them that ask for gradients."""


def takes_all(*arguments: object) -> str:
    """``why_not`` of a back end that takes whatever the operator takes."""
    return ""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: ``torch``, ``cpu``, ``cuda`` ...: one of ``sa2depth.ops.choice.NAMES``.
        run: the operator on its arguments.
        why_not: says why it cannot take these arguments, which are those of ``run``; empty if it can.
        sources: files whose content its numbers depend on: a self-test holds until one of them changes.
        on_request: ``auto`` leaves it alone and a name takes it: it is there to compare with.
        inference_only: it has no backward pass; where a gradient is wanted it does not exist.
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
        backends: fastest first; the last one is ``torch``, the oracle of the others, which takes everything.
        example: ``(device, dtype) ->`` the public function on small inputs, and tensors to ask for gradients of.
    """

    name: str
    backends: tuple[Backend, ...]
    example: Callable[[torch.device, torch.dtype], Example]

    def backend(self, name: str) -> Backend:
        """The implementation of this name.

        Raises:
            KeyError: there is none.
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
    """For examples: a function from a shape to normally distributed numbers, the same for all devices and types."""
    generator = torch.Generator().manual_seed(seed)
    # drawn in float32, so that all precisions start from the same numbers
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu").to(device, dtype)


def as_leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """For examples: the tensors as leaves that ask for gradients."""
    return [tensor.detach().requires_grad_() for tensor in tensors]
