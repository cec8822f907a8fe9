"""A `View` for metrics without a protocol that cuts it."""

import torch

from sa2depth.metrics import Sizes, View


def uncut(truth, index=None, ids=None):
    """`View` of ``truth (B, 1, H, W)``; indices and names count from 0 by default."""
    index = torch.arange(len(truth)) if index is None else index
    size = (truth.shape[-2], truth.shape[-1])
    return View(truth, truth, Sizes(size, size, None), index, ids or [str(i) for i in index.tolist()])
