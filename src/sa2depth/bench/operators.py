"""The operators at the sizes that the networks call them with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops import dcnv3, rank_attention, selective_scan_2d

_POINTS = 9
_RANK, _STATES, _INNER = 16, 16, 512


@dataclass(frozen=True)
class OperatorCase:
    """An operator on inputs of one size.

    Attributes:
        operator: its name in `sa2depth.ops`.
        label: the size, for tables.
        make: ``(device, dtype) -> (function without arguments, tensors that may ask for gradients)``.
    """

    operator: str
    label: str
    make: Callable[[torch.device, torch.dtype], tuple[Callable[[], Tensor], list[Tensor]]]


def operator_cases(model: str, size: tuple[int, int], batch: int) -> list[OperatorCase]:
    """What one model asks of each operator, at each level where it does.

    Args:
        model: ``t``, ``s`` or ``l``.
        size: height and width of the image, multiples of 32.
        batch: images.
    """
    channels, dim_head = {"t": (64, 64), "s": (80, 80), "l": (160, 80)}[model]
    keys = (size[0] // 32) * (size[1] // 32)
    cases = []
    for level in range(4):
        height, width, width_c = size[0] // (4 << level), size[1] // (4 << level), channels << level
        cases.append(_dcnv3_case(batch, height, width, width_c, 2.0 if model == "l" else 1.0))
        cases.append(_attention_case(batch, width_c // dim_head, height * width, keys, dim_head))
    cases.append(_scan_case(batch, size[0] // 4, size[1] // 4))
    return sorted(cases, key=lambda case: case.operator)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _dcnv3_case(batch: int, height: int, width: int, channels: int, offset_scale: float) -> OperatorCase:
    groups = channels // 16

    def make(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        draw = _draw(device)
        mask = draw(batch, height, width, groups, _POINTS).softmax(-1).flatten(-2)
        x = draw(batch, height, width, channels).to(dtype)
        # offset and mask are float32 in the network, whatever the precision
        leaves = _leaves([x, draw(batch, height, width, groups * _POINTS * 2), mask])
        return lambda: dcnv3(*leaves, groups=groups, offset_scale=offset_scale), leaves

    return OperatorCase("dcnv3", f"{batch}x{height}x{width}x{channels}, {groups} groups", make)


def _attention_case(batch: int, heads: int, queries: int, keys: int, dim: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        draw = _draw(device)
        # channels first in memory, as convolutions leave them
        tensors = [draw(batch, heads, dim, count).to(dtype) for count in (queries, keys, keys)]
        query, key, value = leaves = _leaves([tensor.transpose(-1, -2) for tensor in tensors])
        return lambda: rank_attention(query, key, value, float(dim**-0.5)), leaves

    label = f"{batch}x{heads} heads, {queries} queries, {keys} keys, d {dim}"
    return OperatorCase("rank_attention", label, make)


def _scan_case(batch: int, height: int, width: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        draw = _draw(device)
        parameters: list[Any] = [
            draw(4, _RANK + 2 * _STATES, _INNER) * _INNER**-0.5,
            draw(4, _INNER, _RANK) * _RANK**-0.5,
            draw(4, _INNER) - 3,
            torch.arange(1.0, _STATES + 1, device=device).log().repeat(4 * _INNER, 1),
            torch.ones(4 * _INNER, device=device),
        ]
        leaves = _leaves([draw(batch, _INNER, height, width).to(dtype), *parameters])
        return lambda: selective_scan_2d(*leaves), leaves

    return OperatorCase("selective_scan_2d", f"{batch}x{_INNER}x{height}x{width}", make)


def _draw(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device=device)
