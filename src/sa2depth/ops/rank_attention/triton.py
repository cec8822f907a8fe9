"""Rank-grouped attention in Triton: a ``torch.library`` operator around ``triton_kernels*.py``.

Unlike the CUDA kernels, these write weights to memory, and in the backward pass also the gradients of scores: one or
two tensors ``(B, h, Q, N)`` of the inputs' dtype during a pass. Between the passes, the outputs, 44 bytes a query and
one byte a score are kept. Inputs may be views ``(B, h, Q, d)`` of token-major tensors; all results are
token-major.
"""

import math

import torch
from torch import Tensor

from sa2depth.ops.autograd import wants_gradient
from sa2depth.ops.rank_attention.common import (
    FEWEST_KEYS,
    OUTPUTS,
    Ranges,
    ends,
    new_tokens,
    of_one_type,
    parts,
    register,
    token_major,
    why_not_ranges,
)
from sa2depth.ops.registry import Backend
from sa2depth.ops.runtime import triton as machine
from sa2depth.ops.runtime.gpu import multiprocessors

_PLANES = 11  # values that are kept for a query
_FACTS = 10  # values that the backward pass computes for a query
_LOG2_E = 1.4426950408889634

_MOST_KEYS = 1024  # the scores of more do not fit into registers
_LARGEST_DIM = 128
_LARGEST_GRID = 65535
_CHUNK = 16  # channels in a step of computing scores

_GROUPS_QUERIES = 16
_OUTPUTS_QUERIES = 64
_SLOPES_QUERIES, _SLOPES_KEYS = 32, 64
_QUERY_QUERIES, _QUERY_KEYS = 64, 32
_KEY_QUERIES, _KEY_KEYS = 16, 64
_FILLS = 8  # programs on a multiprocessor for the gradients of keys and values
_FEWEST_QUERIES = 64  # for such a program


def why_not(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, *others: int | None
) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    if not 0 < dim <= _LARGEST_DIM:
        return f"it takes heads of up to {_LARGEST_DIM} channels, not {dim}"
    if not FEWEST_KEYS <= keys <= _MOST_KEYS:
        return f"it takes {FEWEST_KEYS} to {_MOST_KEYS} keys, not {keys}"
    if reason := why_not_ranges(ranges):
        return reason
    if batch * heads > _LARGEST_GRID or queries > 2**26:
        return f"the queries of shape {tuple(query.shape)} are too large"
    return machine.why_not("rank_attention", query=query, key=key, value=value)


def run(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, block_queries: int | None
) -> Tensor:
    """``ops.rank_attention`` for arguments that ``why_not`` accepts.

    The result is a view of a token-major tensor ``(5, B, Q, h, d)``.
    """
    inputs = of_one_type(query, key, value)
    output, _, _ = rank_attention(*inputs, float(scale), ends(ranges), wants_gradient(*inputs))
    return output.to(value.dtype)


@torch.library.custom_op("sa2depth::rank_attention_triton", mutates_args=())
def rank_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bounds: list[int], keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over all keys and inside four groups, see ``common.register``.

    Two tensors are kept: 11 values for each query, ``(11, B, h, Q)`` float32, and the group of each key,
    ``(B, h, Q, N + padding)`` int8.
    """
    query, key, value = (_with_rows(t) for t in (query, key, value))
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    output, *kept = _new_outputs(query, key, keep)
    if query.numel() == 0:
        return output, kept[0], kept[1]
    rows, groups = kept if keep else _new_outputs(query, key, True)[1:]
    weights = groups.new_empty(groups.shape, dtype=query.dtype)
    first, second = _halves(keys)
    precision = _precision(query)
    _, wide = _units(query)
    from sa2depth.ops.rank_attention import triton_kernels as kernels

    with machine.launching_on(query.device):
        kernels.groups_kernel[(math.ceil(queries / _GROUPS_QUERIES), batch * heads)](
            query, key, rows, groups, weights, *query.stride()[:3], *key.stride()[:3], groups.stride(2),
            heads, queries, keys, *bounds, scale * _LOG2_E,
            DIM=dim, CHUNK=_CHUNK, QUERIES=_GROUPS_QUERIES, FIRST=first, SECOND=second, PRECISION=precision,
            num_warps=4 if keys <= 320 else 8,
        )  # fmt: skip
        channels = _channels(dim, wide)
        grid = (math.ceil(queries / _OUTPUTS_QUERIES), batch * heads, math.ceil(dim / channels))
        kernels.outputs_kernel[grid](
            value, rows, groups, weights, output, *value.stride()[:3], groups.stride(2), heads, queries, keys,
            DIM=dim, CHANNELS=channels, QUERIES=_OUTPUTS_QUERIES, KEYS=32 if wide else 16, PRECISION=precision,
            num_warps=4 if wide else 8, num_stages=2,
        )  # fmt: skip
    return output, kept[0], kept[1]


@torch.library.custom_op("sa2depth::rank_attention_triton_backward", mutates_args=())
def rank_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    rows: Tensor,
    groups: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the first three arguments of ``rank_attention``, see ``common.register``."""
    grad, query, key, value = (_with_rows(t) for t in (grad, query, key, value))
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    grad_query = new_tokens(query)
    if query.numel() == 0:
        return grad_query, new_tokens(key, 2).zero_()
    output = token_major(output).contiguous()
    facts = rows.new_empty((_FACTS, batch, heads, queries))
    weights = groups.new_empty(groups.shape, dtype=query.dtype)
    slopes = torch.empty_like(weights)
    units, wide = _units(query)
    channels, warps = _channels(dim, wide), 4 if units else 8
    tiles, key_blocks = math.ceil(dim / channels), math.ceil(keys / _KEY_KEYS)
    wanted = _FILLS * multiprocessors(query.device) // (key_blocks * batch * heads * tiles)
    count, part_queries = parts(queries, wanted, _FEWEST_QUERIES, _KEY_QUERIES)
    sums = rows.new_empty((count, 2, batch, keys, heads, dim))
    precision = _precision(query)
    of_grad = grad.stride()[:4]
    from sa2depth.ops.rank_attention import triton_kernels_backward as kernels

    with machine.launching_on(query.device):
        kernels.facts_kernel[(math.ceil(queries / 16), batch * heads)](
            output, grad, rows, facts, *of_grad, heads, queries, keys,
            DIM=dim, CHANNELS=_width(dim), QUERIES=16,
        )  # fmt: skip
        blocks = math.ceil(queries / _SLOPES_QUERIES) * math.ceil(keys / _SLOPES_KEYS)
        kernels.slopes_kernel[(blocks, batch * heads)](
            query, key, value, grad, rows, groups, facts, weights, slopes,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *of_grad, groups.stride(2),
            heads, queries, keys, scale * _LOG2_E,
            DIM=dim, CHUNK=_CHUNK, QUERIES=_SLOPES_QUERIES, KEYS=_SLOPES_KEYS, PRECISION=precision,
            num_warps=warps, num_stages=2,
        )  # fmt: skip
        grid = (math.ceil(queries / _QUERY_QUERIES), batch * heads, math.ceil(dim / channels))
        kernels.query_gradients_kernel[grid](
            key, slopes, grad_query, *key.stride()[:3], groups.stride(2), heads, queries, keys, scale,
            DIM=dim, CHANNELS=channels, QUERIES=_QUERY_QUERIES, KEYS=_QUERY_KEYS, PRECISION=precision,
            num_stages=2,
        )  # fmt: skip
        kernels.key_gradients_kernel[(key_blocks, batch * heads, count * tiles)](
            query, grad, groups, facts, weights, slopes, sums, *query.stride()[:3], *of_grad, groups.stride(2),
            heads, queries, keys, part_queries, tiles, scale,
            DIM=dim, CHANNELS=channels, QUERIES=_KEY_QUERIES, KEYS=_KEY_KEYS, PRECISION=precision,
            num_warps=warps, num_stages=2,
        )  # fmt: skip
    total = sums.sum(dim=0) if count > 1 else sums[0]
    return grad_query, token_major(total.to(key.dtype))


def _new_outputs(query: Tensor, key: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    kept = queries if keep else 0
    rows = query.new_empty((_PLANES, batch, heads, kept), dtype=torch.float32)
    groups = query.new_empty((batch, heads, kept, (key.shape[2] + 15) // 16 * 16), dtype=torch.int8)
    return new_tokens(query, OUTPUTS), rows, groups


def _with_rows(tensor: Tensor) -> Tensor:
    """The same values with contiguous channels."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _width(number: int) -> int:
    """Width of a tile that holds ``number`` elements: a power of two, at least 16 as matrix products need."""
    return max(16, machine.power_of_two(number))


def _halves(keys: int) -> tuple[int, int]:
    """Two powers of two that hold the keys: the largest one below their number, and one for the rest."""
    first = _width(keys) // 2 if keys > 16 else 16
    return first, _width(max(1, keys - first))


def _units(tensor: Tensor) -> tuple[bool, bool]:
    """True if the device has tensor cores; true if, in addition, the 16-bit dtype allows wide tiles of sums."""
    units = machine.float32_precision(tensor.device) != "ieee"
    return units, units and tensor.element_size() == 2


def _channels(dim: int, wide: bool) -> int:
    """Channels of a tile of sums: 64, or 32 if fewer of them are then empty."""
    return min(_width(dim), 64 if wide and not 0 < dim % 64 <= 32 else 32)


def _precision(tensor: Tensor) -> str:
    """Precision of matrix products; products of 16-bit numbers are exact without further settings."""
    return machine.float32_precision(tensor.device) if tensor.dtype == torch.float32 else "ieee"


register(rank_attention, rank_attention_backward, "triton", _new_outputs)
BACKEND = Backend("triton", run, why_not, machine.sources(__file__))
