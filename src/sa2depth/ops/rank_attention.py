"""Attention over all keys and inside four ranges of rank (top-k flexible attention, paper section III-B).

The released code (``TKFA`` in ``sade_layers.py``) ranks four times; here one stable sort serves all groups.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sa2depth.errors import ShapeError
from sa2depth.ops.backends import choose
from sa2depth.ops.cpu.rank_attention import rank_attention_cpu
from sa2depth.ops.cpu.rank_attention import why_not as why_not_cpu
from sa2depth.ops.precision import at_least_float32, no_autocast
from sa2depth.ops.rank_attention_cuda import rank_attention_cuda
from sa2depth.ops.rank_attention_cuda import why_not as why_not_cuda
from sa2depth.ops.triton.rank_attention import rank_attention_triton
from sa2depth.ops.triton.rank_attention import why_not as why_not_triton

RANK_TENTHS = (1, 3, 5, 7)
"""Upper ends of the rank ranges, in tenths of the number of keys."""

# Scores held at once: cache-sized on a CPU, large enough on a GPU to keep it busy.
_SCORES_PER_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}


def rank_ranges(keys: int) -> list[tuple[int, int]]:
    """Half-open ranges of ranks (0 = highest score) of the four groups, for ``keys`` >= 1 keys.

    From 10 keys on the released ones, ``floor(keys * {1, 3, 5, 7} / 10)``: disjoint, and the last keys in
    none.
    """
    bounds = [keys * tenths // 10 for tenths in RANK_TENTHS]
    if keys < len(bounds):
        # OFFICIAL: empty groups made the output NaN below 10 keys; here each keeps at least one key ...
        return [(min(group, keys - 1), min(group, keys - 1) + 1) for group in range(len(bounds))]
    # ... and from 4 keys on they stay disjoint.
    for group in range(len(bounds)):
        bounds[group] = max(bounds[group], bounds[group - 1] + 1 if group else 1)
    return list(pairwise([0, *bounds]))


def rank_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, block_queries: int | None = None
) -> Tensor:
    """Attention outputs over all keys and over the four rank ranges of each query's scores.

    Scores and softmax are float32 (float64 for float64 queries) whatever the autocast state: a rank decided
    in bf16 puts keys into the wrong group. Ties are broken by key index, so each group has its exact size.
    Queries are processed in blocks, recomputed in the backward pass when there is more than one.

    Args:
        query: ``(B, h, Q, d)``.
        key: ``(B, h, N, d)``.
        value: ``(B, h, N, d)``.
        scale: factor of the scores, usually ``d ** -0.5``.
        block_queries: queries a block of the torch path; chosen from the memory they take by default.

    Returns:
        ``(5, B, h, Q, d)`` in the dtype of ``value``: all keys, then groups 1 (highest scores) to 4.

    Raises:
        ShapeError: if there is no key, or the shapes do not belong together.
    """
    if key.shape != value.shape or query.shape[:2] != key.shape[:2] or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            "rank_attention wants query (B, h, Q, d) and key, value (B, h, N, d), got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if key.shape[2] == 0:
        raise ShapeError("rank_attention needs at least one key")
    why_not = {
        "cuda": lambda: why_not_cuda(query, key, value),
        "triton": lambda: why_not_triton(query, key, value),
        "cpu": lambda: why_not_cpu(query, key, value),
    }
    implementation = choose("rank_attention", _IMPLEMENTATIONS, why_not, query.device)
    with no_autocast(query):
        return implementation(query, key, value, scale, block_queries)


def rank_attention_torch(
    query: Tensor, key: Tensor, value: Tensor, scale: float, block_queries: int | None = None
) -> Tensor:
    """``rank_attention`` in plain torch: any device, any number of keys, the oracle of the kernels."""
    if block_queries is None:
        budget = _SCORES_PER_BLOCK.get(query.device.type, _SCORES_PER_BLOCK["cpu"])
        block_queries = max(1, budget // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
    blocks = torch.split(query, block_queries, dim=2)
    if len(blocks) == 1:
        return _attend(query, key, value, scale)
    outputs = [
        checkpoint(_attend, block, key, value, scale, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    return torch.cat(outputs, dim=3)


def _rank_attention_cpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, _block_queries: int | None
) -> Tensor:
    return rank_attention_cpu(query, key, value, scale, [end for _, end in rank_ranges(key.shape[2])])


def _rank_attention_cuda(
    query: Tensor, key: Tensor, value: Tensor, scale: float, _block_queries: int | None
) -> Tensor:
    return rank_attention_cuda(query, key, value, scale, [end for _, end in rank_ranges(key.shape[2])])


def _rank_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, scale: float, _block_queries: int | None
) -> Tensor:
    return rank_attention_triton(query, key, value, scale, [end for _, end in rank_ranges(key.shape[2])])


_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "cuda": _rank_attention_cuda,
    "triton": _rank_attention_triton,
    "cpu": _rank_attention_cpu,
    "torch": rank_attention_torch,
}


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    with no_autocast(query):
        scores = at_least_float32(query) @ at_least_float32(key).transpose(-1, -2) * scale
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        values = at_least_float32(value)
        outputs = [scores.softmax(dim=-1) @ values]
        for start, end in rank_ranges(key.shape[2]):
            weights = torch.zeros_like(scores).scatter(
                -1, order[..., start:end], ranked[..., start:end].softmax(dim=-1)
            )
            outputs.append(weights @ values)
        return torch.stack(outputs).to(value.dtype)
