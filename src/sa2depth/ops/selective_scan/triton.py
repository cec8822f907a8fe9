"""The four-direction selective scan in Triton: a ``torch.library`` operator around ``triton_kernels*.py``.

Chunks of tokens are scanned in parallel, so that one image fills a GPU as well as eight do: the first pass computes the
state after each chunk, the second joins them, the third computes the results. No sum uses atomics.

Memory besides inputs and results: the states before each chunk, as large as four float32 tensors of the tokens' size,
and each direction's share in the dtype of ``x``; in the backward pass, for one image at a time, gradients of the time
steps and partial sums of those of B and C.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from sa2depth.ops.autograd import wants_gradient
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.registry import Backend
from sa2depth.ops.runtime import triton as machine
from sa2depth.ops.runtime.gpu import multiprocessors
from sa2depth.ops.runtime.triton import launching_on, power_of_two
from sa2depth.ops.selective_scan.common import CHUNK, DIRECTIONS, LARGEST_RANK, chunks, register, why_not_ways
from sa2depth.ops.selective_scan.tokens import add_projection_gradients, project_tokens, sum_of_products

_BURST = 2  # tokens whose states are in registers in the backward pass
_BLOCK_CHANNELS = 32  # of a program, which is one warp
_BLOCK_STATES = 128  # of a program that joins chunks
_BLOCK_VALUES = 1024  # of a program that adds up directions
_PROGRAMS = 12  # on a multiprocessor in the backward pass
_REGISTERS = 168  # for each thread of so many programs

_LARGEST_STATES = 32
_LARGEST_GRID = 65535
_INDEX_LIMIT = 2**31


def why_not(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    states, rank = a_log.shape[-1], dt_weight.shape[-1]
    if reason := why_not_ways(x_proj_weight):
        return reason
    if states > _LARGEST_STATES or rank > LARGEST_RANK:
        return (
            f"it takes state sizes up to {_LARGEST_STATES} and ranks up to {LARGEST_RANK}, "
            f"not {states} and {rank}"
        )
    batch, channels, height, width = x.shape
    # 32-bit indices count the values of one image; the states of its chunks are as many.
    row = DIRECTIONS * max(channels, rank + 2 * states)
    if batch > _LARGEST_GRID or height * width * row >= _INDEX_LIMIT:
        return f"the input of shape {tuple(x.shape)} is too large"
    return machine.why_not("selective_scan_2d", input=x)


def run(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> Tensor:
    """``selective_scan_2d`` for arguments that ``why_not`` accepts; the result is channels last."""
    height = x.shape[2]
    inputs = (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
    keep_states = wants_gradient(*inputs)
    tokens = rearrange(x, "b d h w -> b (h w) d").contiguous()
    y, _, _ = selective_scan(tokens, *(t.float() for t in inputs[1:]), height, keep_states)
    return rearrange(y, "b (h w) d -> b d h w", h=height)


@torch.library.custom_op("sa2depth::selective_scan_triton", mutates_args=())
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
    """Sum of the four scans and the skips, see ``common.register``.

    ``x_proj_weight`` is ``(4, R + 2N, D)``. Two float32 tensors are kept: the low-rank dt, B and C of each direction,
    ``(B, L, 4 * (R + 2N))``, and the states before each chunk, ``(B, chunks, 4, N, D)``.
    """
    from sa2depth.ops.selective_scan import triton_kernels as kernels

    outputs = _like_outputs(x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip, height, keep_states)
    if x.numel() == 0:
        return outputs
    total, projected, _ = outputs
    x = x.contiguous()
    length, channels = x.shape[1:]
    with no_autocast(x):
        projected = project_tokens(x, x_proj_weight)
    weights = _by_channel(dt_weight, dt_bias, a_log)
    sizes = _sizes(dt_weight, a_log)
    with launching_on(x.device):
        states = _join(x, projected, weights, sizes, height, adjoint=False)
        shares = x.new_empty((DIRECTIONS, *x.shape))
        kernels.scan_chunks[_grid(x)](
            x,
            projected,
            *weights,
            states,
            shares,
            height,
            length,
            channels,
            CHUNK=CHUNK,
            **sizes,
            num_warps=1,
        )
        _sum_directions(shares, x, d_skip, total)
    if not keep_states:
        return total, *outputs[1:]
    return total, projected, states


@torch.library.custom_op("sa2depth::selective_scan_triton_backward", mutates_args=())
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
    parameters = (dt_weight, dt_bias, a_log, d_skip)
    if x.numel() == 0:
        return (
            x.new_zeros(x.shape),
            x_proj_weight.new_zeros(x_proj_weight.shape),
            *(  # type: ignore[return-value]
                t.new_zeros(t.shape) for t in parameters
            ),
        )
    x, projected, states = x.contiguous(), projected.contiguous(), states.contiguous()
    grad = grad.to(x.dtype).contiguous()
    rank = dt_weight.shape[-1]
    weights = _by_channel(dt_weight, dt_bias, a_log)
    sizes = _sizes(dt_weight, a_log)
    with launching_on(x.device):
        handed_back = _join(grad, projected, weights, sizes, height, adjoint=True)
    shares = x.new_empty((DIRECTIONS, *x.shape))
    grad_rows = torch.empty_like(projected)
    grad_weight, grad_bias = torch.zeros_like(dt_weight), torch.zeros_like(dt_bias)
    grad_a, grad_skip = (
        a_log.new_zeros((DIRECTIONS, a_log.shape[1], x.shape[2])),
        x.new_zeros(x.shape[2]).float(),
    )
    with no_autocast(x):
        for image in range(x.shape[0]):
            scanned = (x, projected, *weights, states, grad, handed_back, shares)
            steps, b_and_c, a = _image_gradients(scanned, sizes, height, image)
            rows, own = (
                rearrange(t[image], "l (k r) -> k l r", k=DIRECTIONS) for t in (grad_rows, projected)
            )
            by_direction = rearrange(steps, "l k d -> k l d")
            rows[..., :rank] = by_direction @ dt_weight
            rows[..., rank:] = rearrange(b_and_c, "l k n -> k l n")
            grad_weight += sum_of_products(by_direction, own[..., :rank])
            grad_bias += steps.sum(dim=0)
            grad_a += a
            grad_skip += (grad[image].float() * x[image].float()).sum(dim=0)
        grad_x = torch.empty_like(x)
        with launching_on(x.device):
            _sum_directions(shares, grad, d_skip, grad_x)
        grad_x_proj_weight = add_projection_gradients(grad_x, grad_rows.to(x.dtype), x, x_proj_weight)
    return (
        grad_x,
        grad_x_proj_weight,
        grad_weight,
        grad_bias,
        rearrange(grad_a, "k n d -> (k d) n") * -a_log.exp(),
        grad_skip.repeat(DIRECTIONS),
    )


def _image_gradients(
    scanned: tuple[Tensor, ...], sizes: dict[str, int], height: int, image: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one image's time steps ``(L, 4, D)``, B and C ``(L, 4, 2N)`` and decay rates ``(4, N, D)``.

    Writes each direction's share of the gradient of the image's tokens to the last tensor of ``scanned``.
    """
    from sa2depth.ops.selective_scan.triton_kernels_backward import scan_chunks_backward

    x, states = scanned[0], scanned[5]
    batch, length, channels = x.shape
    blocks, count = math.ceil(channels / _BLOCK_CHANNELS), chunks(length)
    programs = min(blocks * count * DIRECTIONS, _PROGRAMS * multiprocessors(x.device))
    scratch = states.new_empty((programs, CHUNK // _BURST * sizes["BLOCK_STATES"] + CHUNK, _BLOCK_CHANNELS))
    steps = states.new_empty((length, DIRECTIONS, channels))
    b_and_c = states.new_empty((blocks, length, DIRECTIONS, 2 * sizes["STATES"]))
    a = states.new_empty((count, *states.shape[2:]))
    *inputs, shares = scanned
    # only the compiler for NVIDIA's GPUs knows this option
    options = {"maxnreg": _REGISTERS} if torch.version.cuda else {}
    with launching_on(x.device):
        scan_chunks_backward[(programs,)](
            *(*inputs, scratch, shares, steps, b_and_c, a, height, length, image, batch),
            CHUNK=CHUNK,
            BURST=_BURST,
            CHANNELS=channels,
            **sizes,
            **options,
            num_warps=1,
        )
    return steps, b_and_c.sum(dim=0), a.sum(dim=0)


def _join(
    values: Tensor,
    projected: Tensor,
    weights: tuple[Tensor, ...],
    sizes: dict[str, int],
    height: int,
    *,
    adjoint: bool,
) -> Tensor:
    """States before each chunk, or with ``adjoint`` the gradients handed back to it: ``(B, chunks, 4, N, D)``."""
    from sa2depth.ops.selective_scan import triton_kernels as kernels

    batch, length, channels = values.shape
    count, states = chunks(length), sizes["STATES"]
    ends = projected.new_empty((batch, count, DIRECTIONS, states, channels))
    elapsed = projected.new_empty((batch, count, DIRECTIONS, channels))
    kernels.chunk_ends[_grid(values)](
        *(values, projected, *weights, ends, elapsed, height, length, channels),
        ADJOINT=adjoint,
        CHUNK=CHUNK,
        **sizes,
        num_warps=1,
    )
    grid = (math.ceil(states * channels / _BLOCK_STATES), DIRECTIONS, batch)
    kernels.join_chunks[grid](
        *(ends, elapsed, weights[-1], count),
        ADJOINT=adjoint,
        CHANNELS=channels,
        STATES=states,
        BLOCK=_BLOCK_STATES,
        num_warps=1,
    )
    return ends


def _sum_directions(shares: Tensor, x: Tensor, d_skip: Tensor, total: Tensor) -> None:
    """Write the sum of ``shares (4, B, L, D)`` and of ``x`` times the skips to ``total``."""
    from sa2depth.ops.selective_scan import triton_kernels as kernels

    grid = (math.ceil(x.numel() / _BLOCK_VALUES),)
    kernels.sum_directions[grid](
        shares, x, d_skip.contiguous(), total, x.numel(), CHANNELS=x.shape[-1], BLOCK=_BLOCK_VALUES
    )


def _by_channel(dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters with channels last, in the kernels' order: ``(4, R, D)``, ``(4, D)`` and ``(4, N, D)``."""
    logarithms = rearrange(a_log, "(k d) n -> k n d", k=DIRECTIONS)
    return rearrange(dt_weight, "k d r -> k r d").contiguous(), dt_bias.contiguous(), logarithms.contiguous()


def _sizes(dt_weight: Tensor, a_log: Tensor) -> dict[str, int]:
    rank, states = dt_weight.shape[-1], a_log.shape[-1]
    return {
        "STATES": states,
        "RANK": rank,
        "BLOCK_CHANNELS": _BLOCK_CHANNELS,
        "BLOCK_STATES": power_of_two(states),
        "BLOCK_RANK": power_of_two(rank),
    }


def _grid(x: Tensor) -> tuple[int, int, int]:
    """Programs of a pass over chunks; those of one chunk, which share B and C, are adjacent."""
    batch, length, channels = x.shape
    return chunks(length) * math.ceil(channels / _BLOCK_CHANNELS), DIRECTIONS, batch


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
    states = a_log.new_empty((batch, saved, DIRECTIONS, a_log.shape[1], channels))
    return x.new_empty(x.shape), projected, states


register(selective_scan, selective_scan_backward, "triton", _like_outputs)
BACKEND = Backend("triton", run, why_not, machine.sources(__file__))
