"""The four-direction selective scan through ``mamba_ssm``, which the released code uses, for comparisons.

It needs the package's compiled CUDA scan, which recent versions contain only if they are built with
``MAMBA_KEEP_CUDA_BUILD=TRUE``. ``auto`` never chooses it, because the kernels in ``csrc/selective_scan`` are faster.
"""

import importlib.util

import torch
from einops import rearrange
from torch import Tensor

from sa2depth.ops.precision import at_least_float32
from sa2depth.ops.registry import Backend
from sa2depth.ops.selective_scan.common import why_not_ways


def why_not(x: Tensor, x_proj_weight: Tensor, *others: Tensor) -> str:
    """The reason why ``mamba_ssm`` cannot take these arguments; empty if it can."""
    if not x.is_cuda:
        return f"the input is on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the input is {x.dtype}"
    if reason := why_not_ways(x_proj_weight):
        return reason
    for module in ("mamba_ssm", "selective_scan_cuda"):
        if importlib.util.find_spec(module) is None:
            return (
                f"there is no module {module}: build mamba-ssm with its CUDA scan "
                "(MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation sa2depth[mamba])"
            )
    return ""


def run(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> Tensor:
    """``selective_scan_2d`` for arguments that ``why_not`` accepts."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    height, rank, states = x.shape[2], dt_weight.shape[-1], a_log.shape[-1]
    source, dtype = at_least_float32(x), x.dtype
    by_rows = rearrange(source, "b d h w -> b d (h w)")
    by_columns = rearrange(source, "b d h w -> b d (w h)")
    tokens = torch.stack((by_rows, by_columns, by_rows.flip(-1), by_columns.flip(-1)), dim=1)
    projected = torch.einsum("bkdl,kcd->bkcl", tokens, x_proj_weight.float())
    low_rank, b, c = torch.split(projected, [rank, states, states], dim=2)
    dt = torch.einsum("bkrl,kdr->bkdl", low_rank, dt_weight.float())
    scanned = selective_scan_fn(
        tokens.flatten(1, 2).contiguous(),
        dt.flatten(1, 2).contiguous(),
        -a_log.float().exp(),
        b.contiguous(),
        c.contiguous(),
        d_skip.float(),
        delta_bias=dt_bias.float().flatten(),
        delta_softplus=True,
    )
    row, column, row_back, column_back = rearrange(scanned, "b (k d) l -> k b d l", k=4)
    rows = rearrange(row + row_back.flip(-1), "b d (h w) -> b d h w", h=height)
    columns = rearrange(column + column_back.flip(-1), "b d (w h) -> b d h w", h=height)
    return (rows + columns).to(dtype)


BACKEND = Backend("mamba_ssm", run, why_not, on_request=True)
