"""Rank-grouped attention on CUDA: a ``torch.library`` operator around ``csrc/rank_attention``.

Scores stay on the chip, in the forward pass and when they are computed again in the backward pass; between the two,
48 bytes a query are kept.
"""

import ctypes
import functools
import math
import struct
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import refuse_second_derivative
from sa2depth.ops.backends import say_once
from sa2depth.ops.kernels import Source, launch, why_unavailable

# As in csrc/rank_attention.
_OUTPUTS = 5
_KEY_TILE = 64
_ROW_WORDS = 12
_QUERY_BYTES = 4 * (_ROW_WORDS + 2 * _OUTPUTS)
_FORWARD_QUERIES, _FORWARD_THREADS = 32, 256
_BACKWARD_QUERIES, _QUERIES_THREADS, _KEYS_THREADS = 16, 256, 128
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_FEWEST_KEYS, _MOST_KEYS = 4, 512  # below, groups share keys; above, a warp cannot hold their scores
_LARGEST_DIM = 128
_LARGEST_GRID = 65535
_FILLS = 2  # how often that gradient's grid fills the machine
_FEWEST_QUERIES = 64  # in a part of it


def why_not(query: Tensor, key: Tensor, value: Tensor) -> str:
    """Why the kernels cannot take these inputs; empty if they can."""
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    for tensor in (query, key, value):
        if not tensor.is_cuda or tensor.device != query.device:
            return f"an input is on {tensor.device}"
        if tensor.dtype not in _ELEMENTS:
            return f"an input is {tensor.dtype}"
    if dim % 16 or not 0 < dim <= _LARGEST_DIM:
        return f"the kernels have heads of 16, 32 ... {_LARGEST_DIM} channels, not {dim}"
    if not _FEWEST_KEYS <= keys <= _MOST_KEYS:
        return f"the kernels take {_FEWEST_KEYS} to {_MOST_KEYS} keys, not {keys}"
    if query.numel() == 0 or batch * heads > _LARGEST_GRID or queries > 2**31 - 64:
        return f"the queries have shape {tuple(query.shape)}"
    return _why_unavailable(query.device.index, dim, _slots(keys), _has_gradient(query, key, value))


@torch.compiler.assume_constant_result
def _why_unavailable(index: int, dim: int, slots: int, has_gradient: bool) -> str:
    device = torch.device("cuda", index)
    reason = why_unavailable(device)
    shared_bytes = _shared_bytes(dim, slots)
    largest = max(shared_bytes.values()) if has_gradient else shared_bytes["forward"]
    if not reason and largest > _shared_bytes_limit(device):
        reason = f"{device} has too little shared memory for {32 * slots} keys of width {dim}"
    if reason:
        say_once("rank_attention", reason)
    return reason


def _has_gradient(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


def rank_attention_cuda(query: Tensor, key: Tensor, value: Tensor, scale: float, bounds: list[int]) -> Tensor:
    """``ops.rank_attention`` for inputs that ``why_not`` has nothing against; ``bounds`` are the ends of the groups.

    The result lies in memory as the queries do: channels first if these come from a map ``(B, C, H, W)``.
    """
    inputs = [query, key, value]
    if len({t.dtype for t in inputs}) > 1:
        inputs = [t.float() for t in inputs]
    keep = _has_gradient(*inputs)
    channels_first = query.stride(-1) != 1 and query.stride(-2) == 1
    queries = inputs[0].transpose(-1, -2) if channels_first else inputs[0]
    output, _ = rank_attention(queries, inputs[1], inputs[2], float(scale), bounds, channels_first, keep)
    return (output.transpose(-1, -2) if channels_first else output).to(value.dtype)


@torch.library.custom_op("sa2depth::rank_attention_cuda", mutates_args=())
def rank_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bounds: list[int],
    channels_first: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Attention over all keys and inside four groups.

    Args:
        query: ``(B, h, Q, d)``, or ``(B, h, d, Q)`` with ``channels_first``; float32, bfloat16 or float16.
        key: ``(B, h, N, d)``, of the same type.
        value: ``(B, h, N, d)``.
        scale: factor of the scores.
        bounds: ends of the groups' ranks, rising, four.
        channels_first: the layout of ``query`` and of the outputs.
        keep: return what the backward pass needs.

    Returns:
        ``(5, *query.shape)``; and ``(B, h, Q, 12)`` float32, thresholds, ties and logarithms of sums of each query
        (no query without ``keep``). No gradient flows through the latter.
    """
    query, key, value = (_aligned(t) for t in (query, key, value))
    batch, heads, queries, keys, dim = _sizes(query, key, channels_first)
    output = query.new_empty((_OUTPUTS, *query.shape))
    rows = query.new_empty((batch, heads, queries if keep else 0, _ROW_WORDS), dtype=torch.float32)
    if query.numel() == 0:
        return output, rows
    _launch(
        "forward",
        (query, key, value, output, rows if keep else None),
        (queries, keys, *bounds, _bits(scale)),
        grid=(math.ceil(queries / _FORWARD_QUERIES), batch * heads, 1),
        threads=_FORWARD_THREADS,
        dim=dim,
        channels_first=channels_first,
    )
    return output, rows


@torch.library.custom_op("sa2depth::rank_attention_cuda_backward", mutates_args=())
def rank_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    scale: float,
    channels_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the first three arguments of ``rank_attention``, for ``grad (5, *query.shape)`` of its output."""
    grad, query, key, value, rows = (_aligned(t) for t in (grad, query, key, value, rows))
    batch, heads, queries, keys, dim = _sizes(query, key, channels_first)
    if query.numel() == 0:
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    inputs = (query, key, value, grad, rows)
    grad_query = torch.empty_like(query)
    means = rows.new_empty((batch, heads, queries, _OUTPUTS))
    _launch(
        "backward_queries",
        (*inputs, means, grad_query),
        (queries, keys, _bits(scale)),
        grid=(math.ceil(queries / _BACKWARD_QUERIES), batch * heads, 1),
        threads=_QUERIES_THREADS,
        dim=dim,
        channels_first=channels_first,
    )
    key_blocks = math.ceil(keys / _KEY_TILE)
    held = (3 if dim <= 64 else 2) * _multiprocessors(query.device)  # blocks, as in backward_keys.cu
    parts, part_queries = _parts(queries, _FILLS * held // (key_blocks * batch * heads))
    grad_key, grad_value = (rows.new_empty((parts, *key.shape)) for _ in range(2))
    _launch(
        "backward_keys",
        (*inputs, means, grad_key, grad_value),
        (queries, keys, part_queries, _bits(scale)),
        grid=(key_blocks, parts, batch * heads),
        threads=_KEYS_THREADS,
        dim=dim,
        channels_first=channels_first,
    )
    return grad_query, grad_key.sum(dim=0).to(key.dtype), grad_value.sum(dim=0).to(value.dtype)


def _launch(
    name: str,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    *,
    grid: tuple[int, int, int],
    threads: int,
    dim: int,
    channels_first: bool,
) -> None:
    query, key = tensors[:2]
    assert query is not None
    assert key is not None
    slots = _slots(key.shape[2])
    shared_bytes = _shared_bytes(dim, slots)[name]
    macros = (
        ("DIM", dim),
        ("KEY_SLOTS", slots),
        ("ELEMENT", _ELEMENTS[query.dtype]),
        ("CHANNELS_FIRST", int(channels_first)),
        ("SHARED_BYTES", shared_bytes),
    )
    launch(
        Source(f"rank_attention/{name}.cu", macros),
        f"rank_attention_{name}",
        (*tensors, *(ctypes.c_int32(number) for number in numbers)),
        grid=grid,
        threads=threads,
        device=query.device,
        shared_bytes=shared_bytes,
    )


def _sizes(query: Tensor, key: Tensor, channels_first: bool) -> tuple[int, int, int, int, int]:
    """``B, h, Q, N, d``."""
    batch, heads, first, second = query.shape
    queries, dim = (second, first) if channels_first else (first, second)
    return batch, heads, queries, key.shape[2], dim


def _parts(queries: int, wanted: int) -> tuple[int, int]:
    """Into how many parts the queries are divided for the gradient of the keys, and queries in one."""
    parts = max(1, min(wanted, queries // _FEWEST_QUERIES))
    length = math.ceil(queries / parts / _BACKWARD_QUERIES) * _BACKWARD_QUERIES
    return math.ceil(queries / length), length


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that vectors of four floats can be read from."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _bits(number: float) -> int:
    """A float32 as the integer with the same bits: kernels take integers."""
    return int(struct.unpack("i", struct.pack("f", number))[0])


def _slots(keys: int) -> int:
    """Scores of a query that each lane of a warp keeps."""
    # by comparisons: a compiled graph for any number of keys is then bound to this range of it, not to one number
    slots = 1
    while keys > 32 * slots:
        slots += 1
    return slots


@functools.cache
def _shared_bytes(dim: int, slots: int) -> dict[str, int]:
    """Size of ``Shared`` in each kernel, which checks it."""
    tile, scores = 4 * (dim + 4), 4 * (32 * slots + 8)
    queries, block = _BACKWARD_QUERIES * (1 + _OUTPUTS) * tile, _BACKWARD_QUERIES * _QUERY_BYTES
    factors = 4 * _FORWARD_QUERIES * (2 * _OUTPUTS - 1)
    return {
        "forward": _FORWARD_QUERIES * (scores + tile) + _KEY_TILE * tile + factors,
        "backward_queries": 2 * _BACKWARD_QUERIES * scores + queries + _KEY_TILE * tile + block,
        "backward_keys": 2 * _KEY_TILE * tile + queries + block,
    }


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _shared_bytes_limit(device: torch.device) -> int:
    # torch's type stubs lack it
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 99 << 10))


@rank_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bounds: list[int],
    channels_first: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, *_ = _sizes(query, key, channels_first)
    rows = query.new_empty((batch, heads, queries if keep else 0, _ROW_WORDS), dtype=torch.float32)
    return query.new_empty((_OUTPUTS, *query.shape)), rows


@rank_attention_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    scale: float,
    channels_first: bool,
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.scale, _, ctx.channels_first, ctx.kept = inputs
    ctx.save_for_backward(query, key, value, output[1])


def _gradients(ctx: Any, grad: Tensor, _grad_rows: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.kept:
        raise RuntimeError("rank_attention was called with keep=False: it has no backward pass")
    gradients = rank_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.channels_first)
    return (*gradients, None, None, None, None)


rank_attention.register_autograd(_gradients, setup_context=_save)
rank_attention_backward.register_autograd(refuse_second_derivative("rank_attention", "cuda"))
