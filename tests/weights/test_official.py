import logging

import pytest
import torch

from sa2depth.errors import CheckpointError
from sa2depth.models.encoders import InternImage
from sa2depth.weights import architecture_of, encoder_from_internimage, from_official
from sa2depth.weights.official import official_name, our_name, preset_shapes

NAMES = {"t": "sa2depth_t", "s": "sa2depth_s", "l": "sa2depth_l"}


@pytest.fixture(scope="module")
def states(golden):
    """Empty tensors with the released names and shapes."""
    return {size: {k: torch.empty(s, device="meta") for k, s in golden.keys(size).items()} for size in NAMES}


@pytest.mark.parametrize("size", NAMES)
def test_names_are_one_to_one(states, size):
    released = list(states[size])
    ours = [our_name(name) for name in released]
    assert None not in ours
    assert len(set(ours)) == len(released)
    assert [official_name(name) for name in ours] == released


@pytest.mark.parametrize("size", NAMES)
@pytest.mark.parametrize("container", ["flat", "model", "ddp"])
def test_every_container_and_size(states, size, container, caplog):
    state = states[size]
    if container == "ddp":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if container != "flat":
        state = {"model": state, "global_step": 7, "optimizer": {}}
    with caplog.at_level(logging.INFO):
        renamed = from_official(state)
    shapes = {name: tuple(t.shape) for name, t in renamed.items()}
    assert shapes == preset_shapes(NAMES[size])
    assert architecture_of(renamed) == NAMES[size]
    assert f"{NAMES[size]}: {len(shapes)} tensors" in caplog.text


def test_values_are_untouched():
    state = {name: torch.rand(shape) for name, shape in preset_shapes("sa2depth_nano").items()}
    released = {official_name(name): tensor for name, tensor in state.items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in from_official(released).items())


def test_blocks_are_counted_the_other_way_round():
    assert our_name("block0.attn.attn1") == "decoder.blocks.3.attention.group_weights.0"
    assert our_name("MLBP.proj_1.weight") == "bin_head.projections.3.weight"
    assert our_name("MLSS.SFU.proj_conv1.weight") == "depth_head.fusion.projections.0.weight"
    assert our_name("up2.0.weight") == "decoder.upsamples.0.expand.weight"


def test_a_stray_tensor_is_refused(states):
    with pytest.raises(CheckpointError, match=r"1 of 900 .*backbone\.head\.weight"):
        from_official({**states["t"], "backbone.head.weight": torch.empty(1)})


def test_a_missing_tensor_is_refused(states):
    state = dict(states["t"])
    del state["block0.attn.proj_q.bias"]
    with pytest.raises(
        CheckpointError, match=r"sa2depth_t: 1 missing: decoder\.blocks\.3\.attention\.query\.bias"
    ):
        from_official(state)


def test_a_wrong_shape_is_refused(states):
    state = {**states["t"], "fusion0.bias": torch.empty(7)}
    with pytest.raises(
        CheckpointError, match=r"decoder\.upsamples\.2\.fuse\.bias \(7,\) instead of \(256,\)"
    ):
        from_official(state)


@pytest.mark.parametrize("state", [{}, {"model": 3}, {"epoch": 3}, {"model": {}}])
def test_other_objects_than_state_dicts_are_refused(state):
    with pytest.raises(CheckpointError):
        from_official(state)


class TestInternImage:
    def checkpoint(self, states, size):
        backbone = {
            name.removeprefix("backbone."): tensor
            for name, tensor in states[size].items()
            if name.startswith("backbone.")
        }
        head = {
            "conv_head.0.weight": torch.empty(2, 2),
            "head.weight": torch.empty(2),
            "head.bias": torch.empty(2),
        }
        return {"model": {**backbone, **head}}

    @pytest.mark.parametrize("size", NAMES)
    def test_classification_checkpoint(self, states, size):
        renamed = encoder_from_internimage(self.checkpoint(states, size))
        expected = {
            name.removeprefix("encoder."): shape
            for name, shape in preset_shapes(NAMES[size]).items()
            if name.startswith("encoder.")
        }
        assert {name: tuple(t.shape) for name, t in renamed.items()} == expected

    def test_loads_strictly(self):
        encoder = InternImage(16, (1, 1, 1, 1), (1, 2, 4, 8))
        released = {
            official_name(f"encoder.{name}").removeprefix("backbone."): torch.rand_like(tensor)
            for name, tensor in encoder.state_dict().items()
        }
        encoder.load_state_dict(encoder_from_internimage(released))

    def test_strangers_are_refused(self, states):
        state = self.checkpoint(states, "t")["model"]
        with pytest.raises(CheckpointError, match=r"layer1\.0\.weight"):
            encoder_from_internimage({**state, "layer1.0.weight": torch.empty(1)})
