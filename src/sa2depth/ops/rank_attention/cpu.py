"""Rank-grouped attention on the CPU: a ``torch.library`` operator around ``csrc/cpu/rank_attention.h``."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import refuse_second_derivative
from sa2depth.ops.rank_attention.common import FEWEST_KEYS, OUTPUTS, Ranges, ends, why_not_ranges
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import cpp
from sa2depth.ops.runtime.cpp.library import AttentionShape, AttentionStrides, call


def why_not(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, *others: int | None
) -> str:
    """The reason why the library cannot take these arguments; empty if it can."""
    if not FEWEST_KEYS <= key.shape[2] < 2**31 or not query.shape[-1]:
        return f"there are {key.shape[2]} keys of width {key.shape[3]}"
    return why_not_ranges(ranges) or cpp.why_not("rank_attention", query, key, value)


def run(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, block_queries: int | None
) -> Tensor:
    """``ops.rank_attention`` for arguments that ``why_not`` accepts."""
    output = rank_attention(query.float(), key.float(), value.float(), float(scale), ends(ranges))
    return output.to(value.dtype)


@torch.library.custom_op("sa2depth::rank_attention_cpu", mutates_args=(), device_types="cpu")
def rank_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, bounds: list[int]) -> Tensor:
    """``ops.rank_attention`` for float32 tensors and at least 4 keys.

    Queries are adjacent in memory, so that the output can be read as a map of channels without a copy.
    """
    output = _like_output(query)
    shape, strides = _shape(query, key, scale, bounds), _strides(output)
    inputs = (query, _strides(query), key.contiguous(), value.contiguous())
    if query.numel():
        call("attention_forward", shape, *inputs, output, strides)
    return output


@torch.library.custom_op("sa2depth::rank_attention_cpu_backward", mutates_args=(), device_types="cpu")
def rank_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    scale: float,
    bounds: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; ``grad`` is that of ``output``. Scores are recomputed."""
    grad_query, grad_key, grad_value = _like_query(query), *(t.new_zeros(t.shape) for t in (key, value))
    if query.numel():
        call(
            "attention_backward",
            _shape(query, key, scale, bounds),
            *(query, _strides(query), key.contiguous(), value.contiguous()),
            *(output, _strides(output), grad, _strides(grad)),
            *(grad_query, _strides(grad_query), grad_key, grad_value),
        )
    return grad_query, grad_key, grad_value


def _shape(query: Tensor, key: Tensor, scale: float, bounds: list[int]) -> AttentionShape:
    batch, heads, queries, dim = query.shape
    return AttentionShape(batch, heads, queries, key.shape[2], dim, (ctypes.c_int64 * 4)(*bounds), scale)


def _strides(tensor: Tensor) -> AttentionStrides:
    strides = tensor.stride()
    return AttentionStrides(*(strides if len(strides) == 5 else (0, *strides)))


def _like_query(query: Tensor) -> Tensor:
    batch, heads, queries, dim = query.shape
    return query.new_empty((batch, heads, dim, queries)).transpose(-1, -2)


def _like_output(query: Tensor) -> Tensor:
    batch, heads, queries, dim = query.shape
    return query.new_empty((OUTPUTS, batch, heads, dim, queries)).transpose(-1, -2)


def _like_inputs(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _like_query(query), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], output)
    ctx.scale, ctx.bounds = inputs[3:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*rank_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.bounds), None, None)


rank_attention.register_fake(lambda query, *others: _like_output(query))
rank_attention_backward.register_fake(_like_inputs)
rank_attention.register_autograd(_gradients, setup_context=_save)
rank_attention_backward.register_autograd(refuse_second_derivative("rank_attention", "cpu"))
BACKEND = Backend("cpu", run, why_not, kernel_sources("cpu/*"))
