"""Named architectures as plain specifications, the same that the configuration tree composes.

``sa2depth_t``, ``_s`` and ``_l`` stand on InternImage-T, -S and -L; T and L are the released sizes.
"""

from collections.abc import Sequence
from typing import Any


def _spec(
    channels: int,
    depths: Sequence[int],
    groups: Sequence[int],
    *,
    dim_head: int,
    post_norm: bool = True,
    layer_scale: float | None = 1.0,
    offset_scale: float = 1.0,
    drop_path_rate: float = 0.1,
    hidden: int = 256,
    bins: int = 128,
    state: int = 16,
) -> dict[str, Any]:
    head = {"_partial_": True, "hidden": hidden, "bins": bins}
    return {
        "_target_": "sa2depth.models.SA2Depth",
        "encoder": {
            "_target_": "sa2depth.models.encoders.InternImage",
            "channels": channels,
            "depths": list(depths),
            "groups": list(groups),
            "post_norm": post_norm,
            "layer_scale": layer_scale,
            "offset_scale": offset_scale,
            "drop_path_rate": drop_path_rate,
        },
        "decoder": {
            "_target_": "sa2depth.models.SelectiveAttentionDecoder",
            "_partial_": True,
            "dim_head": dim_head,
        },
        "bin_head": {"_target_": "sa2depth.models.BinHead", **head},
        "depth_head": {"_target_": "sa2depth.models.ScanHead", **head, "state": state},
    }


# OFFICIAL: `encoder='small'` of the released code is InternImage-T; it has no S.
PRESETS: dict[str, dict[str, Any]] = {
    "sa2depth_t": _spec(64, (4, 4, 18, 4), (4, 8, 16, 32), dim_head=64, post_norm=False, layer_scale=None),
    "sa2depth_s": _spec(80, (4, 4, 21, 4), (5, 10, 20, 40), dim_head=80),
    "sa2depth_l": _spec(160, (5, 5, 22, 5), (10, 20, 40, 80), dim_head=80, offset_scale=2.0),
    # For tests and demos on two cores.
    "sa2depth_nano": _spec(
        16,
        (1, 1, 2, 1),
        (1, 2, 4, 8),
        dim_head=16,
        post_norm=False,
        layer_scale=None,
        drop_path_rate=0.0,
        hidden=16,
        bins=64,
        state=4,
    ),
}
"""Specifications by name, without ``min_depth`` and ``max_depth``: these belong to the data."""
