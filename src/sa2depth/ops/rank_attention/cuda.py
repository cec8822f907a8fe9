"""Rank-grouped attention on CUDA: a ``torch.library`` operator around ``csrc/rank_attention``.

Scores stay on the chip, in the forward pass and when they are computed again in the backward pass; between the two,
the outputs and 48 bytes a query are kept. Queries, keys and values are read where they lie, as views ``(B, h, Q, d)``
of token-major tensors; what is written is token-major.
"""

import ctypes
import functools
import math
import struct

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
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime.gpu import multiprocessors, settled, shared_bytes_limit
from sa2depth.ops.runtime.notices import say_once
from sa2depth.ops.runtime.nvrtc import LARGEST_GRID, TYPES, Source, int32, launch, why_unavailable

# As in csrc/rank_attention.
_KEY_TILE = 64
_ROW_WORDS = 12
_FACT_WORDS = 28  # what the backward pass finds for a query
_FORWARD_QUERIES, _FORWARD_THREADS = 32, 256
_QUERIES_QUERIES, _QUERIES_THREADS = 32, 256
_KEYS_QUERIES, _KEYS_THREADS = 16, 128

_MOST_KEYS = 512  # above, a warp cannot hold their scores
_LARGEST_DIM = 128
_FILLS = 2  # how often that gradient's grid fills the machine
_FEWEST_QUERIES = 64  # in a part of it


def why_not(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, *others: int | None
) -> str:
    """Why the kernels cannot take these arguments; empty if they can."""
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    for tensor in (query, key, value):
        if not tensor.is_cuda or tensor.device != query.device:
            return f"an input is on {tensor.device}"
        if tensor.dtype not in TYPES:
            return f"an input is {tensor.dtype}"
    if dim % 16 or not 0 < dim <= _LARGEST_DIM:
        return f"the kernels have heads of 16, 32 ... {_LARGEST_DIM} channels, not {dim}"
    if not FEWEST_KEYS <= keys <= _MOST_KEYS:
        return f"the kernels take {FEWEST_KEYS} to {_MOST_KEYS} keys, not {keys}"
    if reason := why_not_ranges(ranges):
        return reason
    if query.numel() == 0 or batch * heads > LARGEST_GRID or queries > 2**31 - 64:
        return f"the queries have shape {tuple(query.shape)}"
    size = max(4 if len({t.dtype for t in (query, key, value)}) > 1 else 0, query.element_size())
    has_gradient = wants_gradient(query, key, value)
    dim = settled(dim, range(16, _LARGEST_DIM + 1, 16))
    return _why_unavailable(query.device.index, dim, _slots(keys), size, has_gradient)


@torch.compiler.assume_constant_result
def _why_unavailable(index: int, dim: int, slots: int, size: int, has_gradient: bool) -> str:
    device = torch.device("cuda", index)
    reason = why_unavailable(device)
    shared_bytes = _shared_bytes(dim, slots, size)
    largest = max(shared_bytes.values()) if has_gradient else shared_bytes["forward"]
    if not reason and largest > shared_bytes_limit(device):
        reason = f"{device} has too little shared memory for {32 * slots} keys of width {dim}"
    if reason:
        say_once("rank_attention", reason)
    return reason


def run(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, block_queries: int | None
) -> Tensor:
    """``ops.rank_attention`` for arguments that ``why_not`` has nothing against.

    The result is a view of a token-major tensor ``(5, B, Q, h, d)``.
    """
    inputs = of_one_type(query, key, value)
    output, _ = rank_attention(*inputs, float(scale), ends(ranges), wants_gradient(*inputs))
    return output.to(value.dtype)


@torch.library.custom_op("sa2depth::rank_attention_cuda", mutates_args=())
def rank_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bounds: list[int], keep: bool
) -> tuple[Tensor, Tensor]:
    """Attention over all keys and inside four groups, as ``common.register`` describes it.

    Inputs are taken without a copy if the channels of a head lie side by side, from multiples of 16 bytes on. Kept are
    ``(B, h, Q, 12)`` float32: thresholds, ties and logarithms of sums of each query.
    """
    query, key, value = (_aligned(t) for t in (query, key, value))
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    output, rows = _new_outputs(query, key, keep)
    if query.numel() == 0:
        return output, rows
    _launch(
        "forward",
        (query, key, value),
        (token_major(output), rows if keep else None),
        (heads, queries, keys, *bounds, _bits(scale)),
        grid=(math.ceil(queries / _FORWARD_QUERIES), batch * heads, 1),
        threads=_FORWARD_THREADS,
    )
    return output, rows


@torch.library.custom_op("sa2depth::rank_attention_cuda_backward", mutates_args=())
def rank_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, rows: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the first three arguments of ``rank_attention``, as ``common.register`` describes them."""
    grad, query, key, value = (_aligned(t) for t in (grad, query, key, value))
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    grad_query = new_tokens(query)
    if query.numel() == 0:
        return grad_query, new_tokens(key, 2).zero_()
    inputs = (query, key, value, grad)
    facts = rows.new_empty((batch, heads, queries, _FACT_WORDS))
    _launch(
        "backward_queries",
        inputs,
        (token_major(output).contiguous(), rows, facts, token_major(grad_query)),
        (heads, queries, keys, _bits(scale)),
        grid=(math.ceil(queries / _QUERIES_QUERIES), batch * heads, 1),
        threads=_QUERIES_THREADS,
    )
    key_blocks = math.ceil(keys / _KEY_TILE)
    held = (3 if dim <= 64 else 2) * multiprocessors(query.device)  # blocks, as in backward_keys.cu
    count, part_queries = parts(
        queries, _FILLS * held // (key_blocks * batch * heads), _FEWEST_QUERIES, _KEYS_QUERIES
    )
    sums = rows.new_empty((count, 2, batch, keys, heads, dim))
    _launch(
        "backward_keys",
        inputs,
        (facts, sums),
        (heads, queries, keys, part_queries, _bits(scale)),
        grid=(key_blocks, count, batch * heads),
        threads=_KEYS_THREADS,
    )
    total = sums.sum(dim=0) if count > 1 else sums[0]
    return grad_query, token_major(total.to(key.dtype))


def _launch(
    name: str,
    strided: tuple[Tensor, ...],
    others: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    *,
    grid: tuple[int, int, int],
    threads: int,
) -> None:
    """Launches with addresses of strided inputs, of the other tensors, the strides of the former, then numbers."""
    query, key = strided[:2]
    slots = _slots(key.shape[2])
    shared_bytes = _shared_bytes(query.shape[-1], slots, query.element_size())[name]
    macros = (
        ("DIM", query.shape[-1]),
        ("KEY_SLOTS", slots),
        ("ELEMENT", TYPES[query.dtype]),
        ("SHARED_BYTES", shared_bytes),
    )
    launch(
        Source(f"rank_attention/{name}.cu", macros),
        f"rank_attention_{name}",
        (
            # as numbers: as tensors they would have to be contiguous
            *(ctypes.c_int64(tensor.data_ptr()) for tensor in strided),
            *others,
            *(ctypes.c_int64(stride) for tensor in strided for stride in tensor.stride()[:-1]),
            *int32(*numbers),
        ),
        grid=grid,
        threads=threads,
        device=query.device,
        shared_bytes=shared_bytes,
    )


def _new_outputs(query: Tensor, key: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    rows = query.new_empty((batch, heads, queries if keep else 0, _ROW_WORDS), dtype=torch.float32)
    return new_tokens(query, OUTPUTS), rows


def _aligned(tensor: Tensor) -> Tensor:
    """The same values with contiguous channels, every row at a multiple of 16 bytes."""
    size = tensor.element_size()
    if tensor.stride(-1) != 1 or any(stride * size % 16 for stride in tensor.stride()[:-1]):
        tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _bits(number: float) -> int:
    """A float32 as the integer with the same bits: kernels take integers."""
    return int(struct.unpack("i", struct.pack("f", number))[0])


def _slots(keys: int) -> int:
    """Scores of a query that each lane of a warp keeps."""
    # by comparisons: a compiled graph for any number of keys is then bound to this range of it, not to one number
    slots = 2  # two neighbouring keys at a time
    while keys > 32 * slots:
        slots += 2
    return slots


@functools.cache
def _shared_bytes(dim: int, slots: int, size: int) -> dict[str, int]:
    """Size of ``Shared`` in each kernel, which checks it; ``size`` bytes an element."""
    row, scores = size * dim + 16, 4 * (32 * slots + 8)
    query = (1 + OUTPUTS) * row + 4 * _FACT_WORDS
    buffers = 1 if size == 4 else 2
    forward = _FORWARD_QUERIES * (scores + row) + 2 * _KEY_TILE * row
    # warps that share 16 queries; in the forward pass two of them the channels if their sums are short
    slices = 4
    channel_tiles = math.ceil(dim / 8 / (2 if size == 2 and dim <= 64 else slices))
    forward = max(forward, _FORWARD_THREADS // 64 * 16 * 32 * (OUTPUTS * channel_tiles + 1))
    sums = 16 * 32 * _QUERIES_QUERIES // 16 * (slices - 1) * dim // 8
    return {
        "forward": forward + 4 * _FORWARD_QUERIES * OUTPUTS,
        "backward_queries": _QUERIES_QUERIES * query + max(buffers * 2 * _KEY_TILE * row, sums),
        "backward_keys": 2 * _KEY_TILE * row + buffers * _KEYS_QUERIES * query,
    }


register(rank_attention, rank_attention_backward, "cuda", _new_outputs)
BACKEND = Backend("cuda", run, why_not, kernel_sources("rank_attention/*", "*.cuh"))
