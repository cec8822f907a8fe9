"""Merged weights follow their parameters in training, and stay constant once they are fixed."""

import pytest
import torch

from sa2depth.models.encoders.internimage import DeformableConv
from sa2depth.nn import GatedFeedForward, MergesWeights, Modulator, PositionConv

LAYERS = {
    "position": (lambda: PositionConv(8), ["conv.weight"]),
    "modulator": (
        lambda: Modulator(8),
        [f"{gate}_depthwise.{part}" for gate in ("update", "reset") for part in ("weight", "bias")],
    ),
    "feed-forward": (
        lambda: GatedFeedForward(8),
        [f"gate_by_{width}.{part}" for width in (1, 2, 4) for part in ("weight", "bias")],
    ),
    "deformable": (
        lambda: DeformableConv(8, 2, 1.0),
        [f"{branch}.{part}" for branch in ("offset", "mask") for part in ("weight", "bias")],
    ),
}

layers = pytest.mark.parametrize("name", LAYERS)


@layers
def test_they_have_gradients_to_all_their_parameters(name):
    make, parameters = LAYERS[name]
    layer = make()
    sum((index + 1) * tensor.square().sum() for index, tensor in enumerate(layer.merged())).backward()
    assert {key for key, p in layer.named_parameters() if p.grad is not None} == set(parameters)


@layers
def test_they_follow_the_parameters(name):
    layer = LAYERS[name][0]()
    before = [tensor.clone() for tensor in layer.merged()]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert not any(torch.equal(*pair) for pair in zip(before, layer.merged(), strict=True))


@layers
def test_fixed_ones_stay_constant(name):
    layer = LAYERS[name][0]()
    keys, expected = list(layer.state_dict()), [tensor.detach().clone() for tensor in layer.merged()]
    layer.fix_merged()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    for tensor, reference in zip(layer.merged(), expected, strict=True):
        assert not tensor.requires_grad
        assert torch.equal(tensor, reference)
    assert list(layer.state_dict()) == keys
    layer.fix_merged()
    assert not any(torch.equal(*pair) for pair in zip(expected, layer.merged(), strict=True))


@layers
def test_fixed_ones_are_rounded_and_moved_with_the_layer(name):
    layer = LAYERS[name][0]()
    exact = layer.merged()
    layer.fix_merged(torch.bfloat16)
    for tensor, reference in zip(layer.merged(), exact, strict=True):
        assert torch.equal(tensor, reference.bfloat16())
    assert all(tensor.dtype == torch.float64 for tensor in layer.double().merged())
    assert all(tensor.is_meta for tensor in layer.to("meta").merged())


def test_a_layer_must_implement_merge():
    with pytest.raises(TypeError, match="_merge"):
        MergesWeights()
