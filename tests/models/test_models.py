import copy

import pytest
import torch
from torch import nn

import sa2depth
from agreement import assert_same_depth
from sa2depth.errors import ConfigError, ShapeError
from sa2depth.models import PRESETS, ConvDecoder, ConvHead, SA2Depth, build_model, create_model
from sa2depth.nn.position import PositionConv

COUNTS = {"sa2depth_t": 37_399_852, "sa2depth_s": 60_795_132, "sa2depth_l": 260_871_982}


@pytest.fixture
def nano():
    torch.manual_seed(0)
    return create_model("sa2depth_nano", min_depth=1e-3, max_depth=10.0)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = create_model(name, min_depth=1e-3, max_depth=10.0)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == COUNTS[name] - 4 * 9


def test_output_shapes_and_range(nano):
    output = nano.eval()(torch.rand(2, 3, 64, 96))
    assert output.depth.shape == (2, 1, 64, 96)
    assert output.bin_centers.shape == (2, 64)
    assert (output.bin_centers.diff(dim=1) > 0).all()
    assert output.depth.min() >= 1e-3
    assert output.depth.max() <= 10
    logits, centers = nano.predict_bins(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 64, 16, 24)
    assert centers.shape == (2, 64)


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 32), (96, 96)])
def test_sizes_that_broke_the_released_code_are_finite(nano, size):
    """One to nine keys, and key grids one row or column wide, in the forward and backward pass."""
    output = nano(torch.rand(2, 3, *size))
    output.depth.mean().backward()
    assert output.depth.isfinite().all()
    assert all(p.grad.isfinite().all() for p in nano.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [(33, 64), (64, 40), (16, 64), (0, 32)])
def test_other_sizes_are_refused_with_the_size(nano, size):
    with pytest.raises(ShapeError, match=rf"{size[0]}x{size[1]}.*multiples of 32.*Predictor"):
        nano(torch.rand(1, 3, *size))


def test_other_shapes_are_refused(nano):
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\)"):
        nano(torch.rand(3, 32, 32))


def zero_initialised(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if ".dcn.offset." in name or ".dcn.mask." in name]


def test_every_trainable_parameter_receives_a_gradient(nano):
    nano(torch.rand(2, 3, 96, 128)).depth.log().var().backward()
    trainable = {name: p for name, p in nano.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trainable.values())
    without = {name for name, p in trainable.items() if not p.grad.any()}
    # Offset and mask layers start at zero (InternImage), so the layers before them learn from the second step on.
    assert all(".dcn.depthwise." in name or ".dcn.norm." in name for name in without)
    assert {name for name in trainable if ".dcn.offset.weight" in name}.isdisjoint(without)


def test_every_gradient_is_nonzero_once_offsets_are(nano):
    with torch.no_grad():
        parameters = dict(nano.named_parameters())
        for name in zero_initialised(nano):
            parameters[name].normal_(std=0.01)
    nano(torch.rand(2, 3, 96, 128)).depth.log().var().backward()
    dead = [name for name, p in parameters.items() if p.requires_grad and not p.grad.any()]
    assert dead == []


def test_only_the_diagonal_shortcuts_are_frozen(nano):
    frozen = [name for name, p in nano.named_parameters() if not p.requires_grad]
    assert frozen == [f"decoder.blocks.{i}.position.shortcut" for i in range(4)]


def test_position_shortcut_is_a_diagonal():
    module = PositionConv(2)
    nn.init.zeros_(module.conv.weight)
    nn.init.zeros_(module.conv.bias)
    x = torch.rand(1, 2, 5, 5)
    assert torch.allclose(module(x)[..., 2, 2], x[..., 1, 1] + x[..., 2, 2] + x[..., 3, 3])


@pytest.mark.code_path
def test_bfloat16_autocast_is_finite_and_close(nano):
    nano.eval()
    image = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        reference = nano(image)
        with torch.autocast("cpu", torch.bfloat16):
            output = nano(image)
    assert output.depth.dtype == torch.float32
    assert output.bin_centers.dtype == torch.float32
    assert output.depth.isfinite().all()
    # bf16 has 8 bits, and a rounded activation may move a key into the neighbouring rank group, which changes the depth
    # of an untrained model by half a percent
    assert_same_depth(output.depth, reference.depth, beyond=5e-3, share=0.01, rms=1e-3, median=1e-3)


def test_bfloat16_autocast_trains(nano):
    with torch.autocast("cpu", torch.bfloat16):
        output = nano(torch.rand(2, 3, 64, 96))
    output.depth.mean().backward()
    assert all(p.grad.isfinite().all() for p in nano.parameters() if p.requires_grad)


def test_state_dict_round_trip(nano):
    other = create_model("sa2depth_nano", min_depth=1e-3, max_depth=10.0)
    other.load_state_dict(nano.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(nano.eval()(image).depth, other.eval()(image).depth)


def test_eval_is_deterministic_and_train_drops_paths():
    spec = copy.deepcopy(PRESETS["sa2depth_nano"])
    spec["encoder"]["drop_path_rate"] = 0.5
    model = build_model({**spec, "min_depth": 0.1, "max_depth": 10.0})
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(image).depth, model(image).depth)
        model.train()
        torch.manual_seed(1)
        assert not torch.equal(model(image).depth, model(image).depth)


def test_normalisation_happens_inside_and_is_not_saved(nano):
    assert not any("pixel" in key for key in nano.state_dict())
    seen = []
    nano.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    nano(torch.full((2, 3, 32, 32), 0.485))
    assert seen[0][:, 0].abs().max() < 1e-6


def test_plain_baseline_has_the_same_interface():
    spec = copy.deepcopy(PRESETS["sa2depth_nano"])
    spec["decoder"] = {"_target_": "sa2depth.models.ConvDecoder", "_partial_": True}
    spec["depth_head"]["_target_"] = "sa2depth.models.ConvHead"
    del spec["depth_head"]["state"]
    model = build_model({**spec, "min_depth": 0.1, "max_depth": 10.0})
    assert isinstance(model.decoder, ConvDecoder)
    assert isinstance(model.depth_head, ConvHead)
    output = model(torch.rand(2, 3, 64, 96))
    output.depth.mean().backward()
    assert output.depth.shape == (2, 1, 64, 96)
    assert all(p.grad is not None for p in model.parameters())


class TestBuild:
    def test_keeps_a_plain_copy_of_the_specification(self, nano):
        assert nano.spec == {**PRESETS["sa2depth_nano"], "min_depth": 1e-3, "max_depth": 10.0}
        nano.spec["encoder"]["channels"] = 5
        assert PRESETS["sa2depth_nano"]["encoder"]["channels"] == 16

    def test_public_name_is_the_same_model(self):
        model = sa2depth.create_model("sa2depth_nano", min_depth=0.1, max_depth=80.0)
        assert isinstance(model, SA2Depth)
        assert (model.min_depth, model.max_depth) == (0.1, 80.0)

    def test_unknown_name_suggests_the_nearest(self):
        with pytest.raises(ConfigError, match="sa2depth_nano"):
            create_model("sa2depth_nani", min_depth=0.1, max_depth=10)

    @pytest.mark.parametrize("target", ["os.system", "builtins.eval", "sa2depthx.models.SA2Depth"])
    def test_strangers_are_not_called(self, target):
        spec = {**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0}
        spec["encoder"] = {"_target_": target, "_args_": ["echo pwned"]}
        with pytest.raises(ConfigError, match="not trusted"):
            build_model(spec)

    def test_strangers_behind_a_trusted_name_are_not_called(self):
        spec = {**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0}
        spec["decoder"] = {"_target_": "sa2depth.models.build.Path", "_partial_": True}
        spec["encoder"] = {"_target_": "sa2depth.resources.Path", "_args_": ["."]}
        with pytest.raises(ConfigError, match="not trusted"):
            build_model(spec)

    @pytest.mark.parametrize("target", ["os.system", "sa2depth.resources.Path"])
    def test_strangers_inside_a_part_are_not_called(self, target):
        spec = {**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0}
        spec["decoder"]["attention"] = {"_target_": target, "_partial_": True}
        with pytest.raises(ConfigError, match="not trusted"):
            build_model(spec)

    @pytest.mark.parametrize(
        "key", ["encoder", "decoder", "bin_head", "depth_head", "min_depth", "max_depth"]
    )
    def test_missing_part_is_named(self, key):
        spec = {**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0}
        del spec[key]
        with pytest.raises(ConfigError, match=key):
            build_model(spec)

    def test_misspelt_option_is_named(self):
        spec = copy.deepcopy({**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0})
        spec["encoder"]["chanels"] = 3
        with pytest.raises(ConfigError, match="chanels"):
            build_model(spec)

    def test_parts_that_do_not_fit_are_explained(self):
        spec = copy.deepcopy({**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0})
        spec["decoder"]["dim_head"] = 24
        with pytest.raises(ConfigError, match=r"dim_head 24"):
            build_model(spec)

    def test_heads_must_agree_on_the_bins(self):
        spec = copy.deepcopy({**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0})
        spec["bin_head"]["bins"] = 32
        with pytest.raises(ConfigError, match=r"32.*64.*options bins\.bins and head\.bins"):
            build_model(spec)

    @pytest.mark.parametrize("depths", [(10.0, 1.0), (-1.0, 10.0), (1.0, 1.0)])
    def test_impossible_depth_range(self, depths):
        with pytest.raises(ConfigError, match="depth range"):
            create_model("sa2depth_nano", min_depth=depths[0], max_depth=depths[1])


def test_weights_and_buffers_can_be_averaged():
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).double()  # (a + a) / 2 need not be a
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(model)
    image = torch.rand(1, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(averaged.module.eval()(image).depth, model.eval()(image).depth)
