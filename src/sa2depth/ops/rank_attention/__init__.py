"""Attention over all keys and inside ranges of rank (top-k flexible attention, paper section III-B)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, device, dtype, linspace

from sa2depth.errors import ShapeError
from sa2depth.ops.dispatch import choose
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.rank_attention import cpu, cuda, torch, triton
from sa2depth.ops.registry import Example, Operator, as_leaves, drawing, register

RANKS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7))
"""The paper's ranges of rank, as shares of the keys."""

_TENTHS = (1, 3, 5, 7)  # ends of these ranges
_UNIT = 10**6  # other shares are rounded to millionths, because 0.29 * 100 is a little less than 29


def rank_ranges(keys: int, ranks: Sequence[Sequence[float]] = RANKS) -> list[tuple[int, int]]:
    """Half-open ranges of ranks (0 = highest score) of the groups, for ``keys`` >= 1 keys.

    The default ranges are the paper's. From 10 keys on they end at ``floor(keys * {1, 3, 5, 7} / 10)`` as in the
    released code: they are disjoint, and the last keys belong to none. Other ranges are rounded in the same way; each
    has at least one key.
    """
    if ranks != RANKS and tuple(map(tuple, ranks)) != RANKS:
        rounded = [[keys * round(share * _UNIT) // _UNIT for share in ends] for ends in ranks]
        return [(min(start, keys - 1), max(end, min(start, keys - 1) + 1)) for start, end in rounded]
    bounds = [keys * tenths // 10 for tenths in _TENTHS]
    if keys < len(bounds):
        # OFFICIAL: empty groups made the output NaN below 10 keys; here each keeps at least one key ...
        return [(min(group, keys - 1), min(group, keys - 1) + 1) for group in range(len(bounds))]
    # ... and from 4 keys on they stay disjoint.
    for group in range(len(bounds) if keys < 10 else 0):
        bounds[group] = max(bounds[group], bounds[group - 1] + 1 if group else 1)
    return list(pairwise([0, *bounds]))


def rank_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    ranks: Sequence[Sequence[float]] = RANKS,
    block_queries: int | None = None,
) -> Tensor:
    """Attention outputs over all keys and over rank ranges of each query's scores.

    Scores and softmax are float32 (float64 for float64 queries), even under autocast, because a rank decided in bf16
    puts keys into the wrong group. Ties are broken by key index, so each group has its exact size. The torch path
    processes queries in blocks; if there is more than one, the backward pass recomputes them.

    Args:
        query: ``(B, h, Q, d)``.
        key: ``(B, h, N, d)``.
        value: ``(B, h, N, d)``.
        scale: factor of the scores, usually ``d ** -0.5``.
        ranks: start and end of each group's range as shares of the keys, 0 at the highest score. The kernels take four
            groups, each starting where the one before ends; others run in torch.
        block_queries: queries in a block of the torch path; by default chosen by the memory they take.

    Returns:
        ``(1 + G, B, h, Q, d)`` in the dtype of ``value``: all keys, then the ``G`` groups of ``ranks``.

    Raises:
        ShapeError: if there is no key, or the shapes do not match.
    """
    if key.shape != value.shape or query.shape[:2] != key.shape[:2] or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            "rank_attention takes query (B, h, Q, d) and key, value (B, h, N, d), not "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if key.shape[2] == 0:
        raise ShapeError("rank_attention needs at least one key")
    ranges = rank_ranges(key.shape[2], ranks)
    run = choose(OPERATOR, query, key, value, scale, ranges, block_queries)
    with no_autocast(query):
        return run(query, key, value, scale, ranges, block_queries)


def _example(device: device, dtype: dtype) -> Example:
    draw = drawing(2, device, dtype)
    # Scores are far enough apart that no rank depends on rounding.
    query = (
        draw(2, 2, 1, 64).expand(-1, -1, 37, -1) * linspace(0.5, 1.5, 37, device=device, dtype=dtype)[:, None]
    )
    steps = linspace(-2, 2, 45, device=device, dtype=dtype)[:, None]
    direction = query[:, :, :1] / query[:, :, :1].square().sum(-1, keepdim=True)
    key = direction * steps * 8
    query, key, value = inputs = as_leaves([query, key, draw(2, 2, 45, 64)])
    return lambda: rank_attention(query, key, value, 0.125), inputs


_BACKENDS = (cuda.BACKEND, triton.BACKEND, cpu.BACKEND, torch.BACKEND)
OPERATOR = register(Operator("rank_attention", _BACKENDS, _example))
