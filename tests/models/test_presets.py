"""Named architectures are composed from ``conf`` and equal those of old checkpoints and run folders."""

from hydra import compose, initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra

from sa2depth.models import PRESETS, build_model
from sa2depth.models.presets import _composed


def spec(
    channels,
    depths,
    dim_head,
    *,
    post_norm,
    offset_scale=1.0,
    drop_path_rate=0.1,
    hidden=256,
    bins=128,
    state=16,
):
    """A specification as stored in checkpoints of version 0.1, without the depth range."""
    head = {"_partial_": True, "hidden": hidden, "bins": bins}
    encoder = {
        "_target_": "sa2depth.models.encoders.InternImage",
        "channels": channels,
        "depths": depths,
        "groups": [channels // 16 * 2**stage for stage in range(4)],
        "post_norm": post_norm,
        "layer_scale": 1.0 if post_norm else None,
        "offset_scale": offset_scale,
        "drop_path_rate": drop_path_rate,
    }
    decoder = {
        "_target_": "sa2depth.models.SelectiveAttentionDecoder",
        "_partial_": True,
        "dim_head": dim_head,
    }
    return {
        "_target_": "sa2depth.models.SA2Depth",
        "encoder": encoder,
        "decoder": decoder,
        "bin_head": {"_target_": "sa2depth.models.BinHead", **head},
        "depth_head": {"_target_": "sa2depth.models.ScanHead", **head, "state": state},
    }


EXPECTED = {
    "sa2depth_t": spec(64, [4, 4, 18, 4], post_norm=False, dim_head=64),
    "sa2depth_s": spec(80, [4, 4, 21, 4], post_norm=True, dim_head=80),
    "sa2depth_l": spec(160, [5, 5, 22, 5], post_norm=True, offset_scale=2.0, dim_head=80),
    "sa2depth_nano": spec(
        16, [1, 1, 2, 1], post_norm=False, drop_path_rate=0.0, dim_head=16, hidden=16, bins=64, state=4
    ),
}


def test_presets_have_not_changed():
    assert dict(PRESETS) == EXPECTED
    assert len(PRESETS) == 4
    assert "sa2depth_x" not in PRESETS
    assert PRESETS.get("sa2depth_x") is None


def test_changing_a_returned_preset_does_not_change_the_next():
    PRESETS["sa2depth_nano"]["encoder"]["channels"] = 5
    assert PRESETS["sa2depth_nano"] == EXPECTED["sa2depth_nano"]


def test_the_users_hydra_application_is_unaffected(tmp_path):
    (tmp_path / "mine.yaml").write_text("network: sa2depth_nano\n")
    _composed.cache_clear()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        application = GlobalHydra.instance().hydra
        build_model({**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10})
        assert GlobalHydra.instance().hydra is application
        assert str(version.getbase()) == "1.2"
        assert compose("mine").network == "sa2depth_nano"
