"""The operators at the sizes at which the networks call them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops import (
    dcnv3_fused,
    depthwise_conv,
    gated_conv,
    layer_norm,
    rank_attention,
    selective_scan_2d,
)
from sa2depth.ops.registry import Example, as_leaves

_POINTS = 9
_RANK, _STATES, _INNER = 16, 16, 512


@dataclass(frozen=True)
class OperatorCase:
    """An operator on inputs of one size.

    Attributes:
        operator: its name in `sa2depth.ops`.
        label: the size, for tables.
        make: ``(device, dtype) -> (function without arguments, tensors that may need gradients)``.
    """

    operator: str
    label: str
    make: Callable[[torch.device, torch.dtype], Example]


def operator_cases(model: str, size: tuple[int, int], batch: int) -> list[OperatorCase]:
    """The calls of one model to each operator, at each level that uses it.

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
        cases.append(_norm_case(batch, height, width, width_c))
        cases.append(_depthwise_case(batch, height, width, width_c, 3))
        # the modulator of all four groups
        cases.append(_depthwise_case(4 * batch, height, width, width_c, 11))
        cases.append(_gated_conv_case(batch, height, width, 4 * width_c))
    cases.append(_gated_conv_case(batch, size[0] // 4, size[1] // 4, 2 * _INNER))
    cases.append(_scan_case(batch, size[0] // 4, size[1] // 4))
    return sorted(cases, key=lambda case: case.operator)


def _dcnv3_case(batch: int, height: int, width: int, channels: int, offset_scale: float) -> OperatorCase:
    groups = channels // 16

    def make(device: torch.device, dtype: torch.dtype) -> Example:
        draw = _draw(device)
        # in the network one matrix product makes offsets and logits, in the network's precision
        shapes = (channels, groups * _POINTS * 3)
        leaves = as_leaves([draw(batch, height, width, last).to(dtype) for last in shapes])
        return lambda: dcnv3_fused(*leaves, groups=groups, offset_scale=offset_scale), leaves

    return OperatorCase("dcnv3", f"{batch}x{height}x{width}x{channels}, {groups} groups", make)


def _attention_case(batch: int, heads: int, queries: int, keys: int, dim: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> Example:
        draw = _draw(device)
        # 1x1 convolutions leave the heads of a pixel side by side, and key and value of a key likewise
        query = draw(batch, queries, heads, dim).to(dtype).transpose(1, 2)
        key, value = draw(batch, keys, 2, heads, dim).to(dtype).permute(2, 0, 3, 1, 4).unbind()
        query, key, value = leaves = as_leaves([query, key, value])
        return lambda: rank_attention(query, key, value, float(dim**-0.5)), leaves

    label = f"{batch}x{heads} heads, {queries} queries, {keys} keys, d {dim}"
    return OperatorCase("rank_attention", label, make)


def _scan_case(batch: int, height: int, width: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> Example:
        draw = _draw(device)
        parameters: list[Any] = [
            draw(4, _RANK + 2 * _STATES, _INNER) * _INNER**-0.5,
            draw(4, _INNER, _RANK) * _RANK**-0.5,
            draw(4, _INNER) - 3,
            torch.arange(1.0, _STATES + 1, device=device).log().repeat(4 * _INNER, 1),
            torch.ones(4 * _INNER, device=device),
        ]
        x = draw(batch, _INNER, height, width).to(dtype, memory_format=torch.channels_last)
        leaves = as_leaves([x, *parameters])
        return lambda: selective_scan_2d(*leaves), leaves

    return OperatorCase("selective_scan_2d", f"{batch}x{_INNER}x{height}x{width}", make)


def _depthwise_case(batch: int, height: int, width: int, channels: int, kernel: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> Example:
        draw = _draw(device)
        x = draw(batch, channels, height, width).to(dtype, memory_format=torch.channels_last)
        weights = [draw(channels, 1, kernel, kernel).to(dtype), draw(channels).to(dtype)]
        leaves = as_leaves([x, *weights])
        return lambda: depthwise_conv(*leaves), leaves

    label = f"{batch}x{channels}x{height}x{width}, {kernel}x{kernel}"
    return OperatorCase("depthwise_conv", label, make)


def _norm_case(batch: int, height: int, width: int, channels: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> Example:
        draw = _draw(device)
        leaves = as_leaves([t.to(dtype) for t in (draw(batch, height, width, channels), *draw(2, channels))])
        return lambda: layer_norm(leaves[0], leaves[1], leaves[2]), leaves

    return OperatorCase("layer_norm", f"{batch}x{height}x{width}x{channels}", make)


def _gated_conv_case(batch: int, height: int, width: int, channels: int) -> OperatorCase:
    def make(device: torch.device, dtype: torch.dtype) -> Example:
        draw = _draw(device)
        x = draw(batch, channels, height, width).to(dtype, memory_format=torch.channels_last)
        weights = [(draw(channels, 4, 3, 3) * 0.2).to(dtype), (draw(channels) * 0.2).to(dtype)]
        leaves = as_leaves([x, *weights])
        return lambda: gated_conv(*leaves), leaves

    return OperatorCase("gated_conv", f"{batch}x{channels}x{height}x{width}", make)


def _draw(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device=device)
