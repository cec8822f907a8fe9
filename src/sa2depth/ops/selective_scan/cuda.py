"""The four-direction selective scan on CUDA: a ``torch.library`` operator around ``csrc/selective_scan``.

Tokens stay in the order of the image's rows; directions are orders in which the kernels visit them. The projections
of a token for all four directions are one matrix product in torch, everything after it is in the kernels.

Tensors of the size of the tokens have the type of ``x``. In 16 bits what each direction adds is rounded before the sum
over directions, and so are, in the backward pass, the sums over 64 channels that the gradients of the projections are
made of. States, the projections and all arithmetic are float32.
"""

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sa2depth.ops.autograd import wants_gradient
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import nvrtc
from sa2depth.ops.runtime.gpu import multiprocessors, ready, settled, shared_bytes_limit
from sa2depth.ops.runtime.notices import say_once
from sa2depth.ops.runtime.nvrtc import LARGEST_GRID, TYPES, Argument, Source, int32, launch, why_unavailable
from sa2depth.ops.selective_scan.common import CHUNK, DIRECTIONS, LARGEST_RANK, chunks, register, why_not_ways
from sa2depth.ops.selective_scan.tokens import add_projection_gradients, project_tokens

STATES = 16
"""State size that the kernels are written for."""

_VECTOR_BYTES = 16

# As in csrc/selective_scan/scan.cuh.
_BLOCK_CHANNELS = 64

_THREADS = 128  # that walk
_STEP_ROW = 34 * 16  # bytes of shared memory

_BLOCKS_HELD = 2  # by a multiprocessor
# A grid of this part of the machine's capacity is not divided: a first pass would cost more than it brings.
_FILLS_FORWARD, _FILLS_BACKWARD = 0.45, 0.75


def why_not(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> str:
    """Why the kernels cannot take these arguments; empty if they can."""
    states, rank = a_log.shape[-1], dt_weight.shape[-1]
    if reason := nvrtc.why_not(("input", x)) or why_not_ways(x_proj_weight):
        return reason
    if states != STATES or rank > LARGEST_RANK:
        return f"the kernels have state size {STATES} and ranks up to {LARGEST_RANK}, not {states} and {rank}"
    if x.numel() == 0 or x.shape[0] > LARGEST_GRID or x.shape[2] * x.shape[3] >= 2**31:
        return f"the input has shape {tuple(x.shape)}"
    return _why_unavailable(x.device.index, settled(rank, range(LARGEST_RANK + 1)))


@torch.compiler.assume_constant_result
def _why_unavailable(index: int, rank: int) -> str:
    device = torch.device("cuda", index)
    reason = why_unavailable(device)
    if not reason and _backward_shared_bytes(rank, 1) > shared_bytes_limit(device):
        reason = f"{device} has too little shared memory for rank {rank}"
    if reason:
        say_once("selective_scan_2d", reason)
    return reason


def run(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> Tensor:
    """``selective_scan_2d`` for arguments that ``why_not`` has nothing against; the result is channels last."""
    channels, height = x.shape[1:3]
    rank = dt_weight.shape[-1]
    inputs = (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
    keep_states = wants_gradient(*inputs)
    tokens = _tokens(x)
    weights = [t.float() for t in inputs[1:]]
    if channels % _BLOCK_CHANNELS or rank % 4:
        tokens, weights = _pad(tokens, weights)
    x_proj_weight, dt_weight, dt_bias, a_log, d_skip = weights
    y, _, _ = selective_scan(tokens, x_proj_weight, dt_weight, dt_bias, a_log, d_skip, height, keep_states)
    return rearrange(y, "b (h w) d -> b d h w", h=height)[:, :channels]


def _tokens(x: Tensor) -> Tensor:
    """``(B, D, H, W)`` to ``(B, L, D)``, contiguous; no copy if it is channels last already."""
    if x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        return to_tokens(x)
    return rearrange(x, "b d h w -> b (h w) d").contiguous()


def _pad(tokens: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Zero channels and ranks up to what the kernels take; they add nothing to the others."""
    x_proj_weight, dt_weight, dt_bias, a_log, d_skip = weights
    channels, rank = dt_weight.shape[1:]
    more_channels, more_rank = -channels % _BLOCK_CHANNELS, -rank % 4
    x_proj_weight = torch.cat(
        (F.pad(x_proj_weight[:, :rank], (0, 0, 0, more_rank)), x_proj_weight[:, rank:]), dim=1
    )
    a_log = F.pad(rearrange(a_log, "(k d) n -> k d n", k=DIRECTIONS), (0, 0, 0, more_channels))
    d_skip = F.pad(rearrange(d_skip, "(k d) -> k d", k=DIRECTIONS), (0, more_channels))
    return F.pad(tokens, (0, more_channels)), [
        F.pad(x_proj_weight, (0, more_channels)),
        F.pad(dt_weight, (0, more_rank, 0, more_channels)),
        F.pad(dt_bias, (0, more_channels)),
        a_log.flatten(0, 1),
        d_skip.flatten(),
    ]


@torch.library.custom_op("sa2depth::to_tokens", mutates_args=())
def to_tokens(x: Tensor) -> Tensor:
    """``(B, D, H, W)`` to ``(B, H * W, D)``, both contiguous."""
    return _turn(x.contiguous().flatten(2))


def _turn(x: Tensor) -> Tensor:
    """Contiguous ``(B, D, L)`` to contiguous ``(B, L, D)``."""
    batch, channels, length = x.shape
    tokens = x.new_empty((batch, length, channels))
    if x.numel():
        grid = (math.ceil(length / 32), math.ceil(channels / 32), batch)
        source = _source("to_tokens", x)
        sizes = int32(channels, length)
        launch(source, "to_tokens", (x, tokens, *sizes), grid=grid, threads=256, device=x.device)
    return tokens


def _contiguous(tokens: Tensor) -> Tensor:
    """``ready`` for ``(B, L, D)``, fast if it lay channels first."""
    turned = tokens.transpose(1, 2)
    return _turn(turned) if turned.is_contiguous() and not tokens.is_contiguous() else ready(tokens)


@torch.library.custom_op("sa2depth::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
    height: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the four scans and the skips, as ``common.register`` describes it.

    ``D`` is a multiple of 64, ``R`` of 4, ``N`` is 16, and ``x_proj_weight`` is ``(4, R + 2N, D)``. Kept are, in
    float32, ``(B, L, 4 * (R + 2N))``, for each direction the low-rank dt, B and C, and ``(B, chunks, 4, D, N)``, the
    states before each chunk.
    """
    x, dt_weight, dt_bias, a_log, d_skip = (ready(t) for t in (x, dt_weight, dt_bias, a_log, d_skip))
    batch, length, channels = x.shape
    if x.numel() == 0:
        return _like_outputs(x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip, height, keep_states)
    total = torch.empty_like(x)
    saved = chunks(length) if keep_states else 0
    states = a_log.new_empty((batch, saved, DIRECTIONS, channels, STATES))
    with no_autocast(x):
        projected = project_tokens(x, x_proj_weight)
    parts = x.new_empty((DIRECTIONS - 1, batch, length, channels))
    segments, segment_tokens = _segments(x, _FILLS_FORWARD)
    grid = (channels // _BLOCK_CHANNELS, DIRECTIONS * segments, batch)
    sizes = int32(height, length // height, channels, segment_tokens)
    inputs = (x, projected, dt_weight, dt_bias, a_log)
    ends, elapsed = _segment_ends("segment_ends", inputs, grid, sizes)
    outputs = (ends, elapsed, total, parts, states if keep_states else None)
    _launch_forward("scan_forward", (*inputs, *outputs, *sizes), dt_weight.shape[-1], grid)
    _sum_directions(total, parts, x, d_skip)
    return total, projected if keep_states else projected.new_empty((batch, length, 0)), states


@torch.library.custom_op("sa2depth::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    grad: Tensor,
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
    projected: Tensor,
    states: Tensor,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first six arguments of ``selective_scan``; ``grad (B, L, D)`` is that of its result."""
    grad = _contiguous(grad.to(x.dtype))
    x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip, projected, states = (
        ready(t) for t in (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip, projected, states)
    )
    (batch, length, channels), rank = x.shape, dt_weight.shape[-1]
    if x.numel() == 0:
        inputs = (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
        return tuple(torch.zeros_like(t) for t in inputs)  # type: ignore[return-value]
    segments, segment_tokens = _segments(x, _FILLS_BACKWARD)
    blocks = channels // _BLOCK_CHANNELS
    grid = (blocks, DIRECTIONS * segments, batch)
    sizes = int32(height, length // height, channels, segment_tokens)
    parameters = (projected, dt_weight, dt_bias, a_log)
    ends, elapsed = _segment_ends("adjoint_segment_ends", (grad, *parameters), grid, sizes)

    grad_x = torch.empty_like(x)
    grad_x_parts = x.new_empty((DIRECTIONS - 1, batch, length, channels))
    grad_projected_parts = x.new_empty((blocks, *projected.shape))
    rows = (batch, segments, DIRECTIONS * channels)
    grad_weight, grad_a = dt_weight.new_empty((*rows, rank)), a_log.new_empty((*rows, STATES))
    grad_bias, grad_skip = dt_bias.new_empty(rows), d_skip.new_empty(rows)
    outputs = (grad_x, grad_x_parts, grad_projected_parts, grad_weight, grad_bias, grad_a, grad_skip)
    # the second buffer saves barriers where there is room for it
    buffers = 2 if _backward_shared_bytes(rank, 2) <= shared_bytes_limit(x.device) else 1
    shared_bytes = _backward_shared_bytes(rank, buffers)
    launch(
        _source("backward", x, RANK=rank, SUM_BUFFERS=buffers, SHARED_BYTES=shared_bytes),
        "scan_backward",
        (x, *parameters, states, grad, ends, elapsed, *outputs, *sizes),
        grid=grid,
        threads=_THREADS,
        device=x.device,
        shared_bytes=shared_bytes,
    )

    _sum_directions(grad_x, grad_x_parts, grad, d_skip)
    with no_autocast(x):  # whoever calls backward inside it
        grad_projected = grad_projected_parts.sum(dim=0)
        del grad_x_parts, grad_projected_parts, outputs
        grad_x_proj_weight = add_projection_gradients(grad_x, grad_projected, x, x_proj_weight)
    sums = [t.sum(dim=(0, 1)) for t in (grad_weight, grad_bias, grad_a, grad_skip)]
    return (
        grad_x,
        grad_x_proj_weight,
        sums[0].view_as(dt_weight),
        sums[1].view_as(dt_bias),
        sums[2] * -a_log.exp(),
        sums[3],
    )


def _segment_ends(
    kernel: str, inputs: tuple[Tensor, ...], grid: tuple[int, int, int], sizes: tuple[ctypes.c_int32, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """First pass over the segments of each image; nothing to do if there is only one."""
    segments = grid[1] // DIRECTIONS
    if segments == 1:
        return None, None
    x, dt_weight = inputs[0], inputs[2]
    ends = dt_weight.new_empty((x.shape[0], segments, DIRECTIONS, x.shape[2], STATES))
    elapsed = dt_weight.new_empty(ends.shape[:-1])
    _launch_forward(kernel, (*inputs, ends, elapsed, *sizes), dt_weight.shape[-1], grid)
    return ends, elapsed


def _launch_forward(
    kernel: str, arguments: tuple[Argument, ...], rank: int, grid: tuple[int, int, int]
) -> None:
    (x, *_) = arguments
    assert isinstance(x, Tensor)
    shared_bytes = _forward_shared_bytes(rank)
    launch(
        _source("forward", x, RANK=rank, SHARED_BYTES=shared_bytes),
        kernel,
        arguments,
        grid=grid,
        threads=2 * _THREADS,
        device=x.device,
        shared_bytes=shared_bytes,
    )


def _sum_directions(total: Tensor, parts: Tensor, x: Tensor, d_skip: Tensor) -> None:
    """Add ``parts (3, B, L, D)`` and ``x`` times the skips to ``total``."""
    count, threads = x.numel() * x.element_size() // _VECTOR_BYTES, 256
    blocks = min(math.ceil(count / threads), 32 * multiprocessors(x.device))
    arguments = (total, parts, x, d_skip, ctypes.c_int64(count), ctypes.c_int32(x.shape[-1]))
    source = _source("sum_directions", x)
    launch(source, "sum_directions", arguments, grid=(blocks, 1, 1), threads=threads, device=x.device)


def _segments(x: Tensor, fills: float) -> tuple[int, int]:
    """How many segments each image is divided into, and tokens in one: as many blocks as the machine holds."""
    count = chunks(x.shape[1])
    blocks = x.shape[0] * DIRECTIONS * (x.shape[2] // _BLOCK_CHANNELS)
    capacity = _BLOCKS_HELD * multiprocessors(x.device)
    if blocks >= fills * capacity:
        return 1, count * CHUNK
    wanted = max(1, min(capacity // blocks, count, LARGEST_GRID // DIRECTIONS))
    chunks_each = math.ceil(count / wanted)
    return math.ceil(count / chunks_each), chunks_each * CHUNK


def _source(name: str, x: Tensor, **macros: int) -> Source:
    return Source(f"selective_scan/{name}.cu", (("VALUE_TYPE", TYPES[x.dtype]), *macros.items()))


def _forward_shared_bytes(rank: int) -> int:
    """Size of ``Shared`` in ``forward.cu``, which checks it."""
    tile, row = 32, (rank + 36) * 4
    return tile * (3 * row + 2 * _STEP_ROW + 4 * 4)


def _backward_shared_bytes(rank: int, buffers: int) -> int:
    """Size of ``Shared`` in ``backward.cu``, which checks it."""
    tokens = CHUNK * ((rank + 36) * 4 + _STEP_ROW + 36 * 8 + 4)
    starts = 7 * _BLOCK_CHANNELS * STATES * 4
    weight, sums = _BLOCK_CHANNELS * (rank + 4) * 4, buffers * 4 * 8 * 2 * STATES * 4
    return tokens + starts + max(weight, sums)


@to_tokens.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2] * x.shape[3], x.shape[1]))


def _like_outputs(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
    height: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = x.shape
    saved, columns = (chunks(length), x_proj_weight.shape[:2].numel()) if keep_states else (0, 0)
    projected = x_proj_weight.new_empty((batch, length, columns))
    return x.new_empty(x.shape), projected, a_log.new_empty((batch, saved, DIRECTIONS, channels, STATES))


def _save_size(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.height = inputs[0].shape[2]


def _to_image(ctx: Any, grad: Tensor) -> Tensor:
    return rearrange(grad, "b (h w) d -> b d h w", h=ctx.height)


to_tokens.register_autograd(_to_image, setup_context=_save_size)
register(selective_scan, selective_scan_backward, "cuda", _like_outputs)
BACKEND = Backend("cuda", run, why_not, kernel_sources("selective_scan/*", "*.cuh"))
