"""Rank-grouped attention in plain torch, for any device; the oracle of the kernels.

The released code (``TKFA`` in ``sade_layers.py``) sorts four times; here one stable sort serves all groups.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sa2depth.ops.precision import at_least_float32, no_autocast
from sa2depth.ops.rank_attention.common import Ranges
from sa2depth.ops.registry import Backend

# Scores held at once: on a CPU they fit into the cache, on a GPU they keep it busy.
_SCORES_PER_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}


def run(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges, block_queries: int | None = None
) -> Tensor:
    """``rank_attention`` on any device, for any number of keys and any ranges."""
    if block_queries is None:
        budget = _SCORES_PER_BLOCK.get(query.device.type, _SCORES_PER_BLOCK["cpu"])
        block_queries = max(1, budget // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
    blocks = torch.split(query, block_queries, dim=2)
    if len(blocks) == 1:
        return _attend(query, key, value, scale, ranges)
    outputs = [
        checkpoint(_attend, block, key, value, scale, ranges, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    return torch.cat(outputs, dim=3)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, ranges: Ranges) -> Tensor:
    with no_autocast(query):
        scores = at_least_float32(query) @ at_least_float32(key).transpose(-1, -2) * scale
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        values = at_least_float32(value)
        outputs = [scores.softmax(dim=-1) @ values]
        for start, end in ranges:
            weights = torch.zeros_like(scores).scatter(
                -1, order[..., start:end], ranked[..., start:end].softmax(dim=-1)
            )
            outputs.append(weights @ values)
        return torch.stack(outputs).to(value.dtype)


BACKEND = Backend("torch", run)
