"""Gradient checkpointing gives the same step and keeps less memory for it."""

import copy

import pytest
import torch
from torch import nn

from sa2depth.errors import ConfigError
from sa2depth.models import PRESETS, ConvDecoder, build_model
from sa2depth.models.decoders import ConvBlock
from sa2depth.models.encoders import TimmEncoder
from sa2depth.nn import recompute
from sa2depth.runtime.checkpointing import checkpoint_layers

BOTH = ("encoder", "decoder")


def network(drop_path_rate=0.0):
    nano = PRESETS["sa2depth_nano"]
    encoder = {**nano["encoder"], "drop_path_rate": drop_path_rate}
    torch.manual_seed(0)
    return build_model({**nano, "encoder": encoder, "min_depth": 1e-3, "max_depth": 10.0}).double()


def checkpointed(model, parts=BOTH):
    model = copy.deepcopy(model)
    checkpoint_layers(model, parts)
    return model


def loss(model):
    torch.manual_seed(1)
    return model(torch.rand(2, 3, 64, 64, dtype=torch.float64)).depth.square().mean()


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("parts", [("encoder",), ("decoder",), BOTH], ids="+".join)
def test_the_step_is_the_same(parts, drop_path_rate):
    plain = network(drop_path_rate)
    model = checkpointed(plain, parts)
    losses = [loss(m) for m in (plain, model)]
    for value in losses:
        value.backward()
    assert torch.equal(*losses)
    gradients = [{name: p.grad for name, p in m.named_parameters()} for m in (plain, model)]
    for name, expected in gradients[0].items():
        assert (expected is None and gradients[1][name] is None) or torch.equal(
            gradients[1][name], expected
        ), name


def test_the_second_run_draws_no_random_numbers():
    plain = network(drop_path_rate=0.5)
    model = checkpointed(plain)
    values = [loss(m) for m in (plain, model)]
    torch.manual_seed(
        2
    )  # as with replayed CUDA graphs, whose forward and backward pass have different RNG states
    before = torch.get_rng_state()
    for value in values:
        value.backward()
    assert torch.equal(torch.get_rng_state(), before)
    for expected, parameter in zip(plain.parameters(), model.parameters(), strict=True):
        assert expected.grad is None or torch.equal(parameter.grad, expected.grad)


def test_batch_norms_count_a_batch_once():
    plain = network()
    start = copy.deepcopy(plain.state_dict())
    model = checkpointed(plain)
    for m in (plain, model):
        loss(m).backward()
    after = model.state_dict()
    for name, expected in plain.state_dict().items():
        assert torch.equal(after[name], expected), name
    assert after["decoder.blocks.0.norm1.num_batches_tracked"] == 1
    assert not torch.equal(
        after["decoder.blocks.0.norm1.running_mean"], start["decoder.blocks.0.norm1.running_mean"]
    )


def kept_bytes(model):
    """Bytes that a forward pass keeps for the backward pass, except weights and the inputs of layers."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def pack(tensor):
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(model)
    del value
    return sum(seen.values())


def test_less_is_kept():
    model = network()
    alone = {part: kept_bytes(checkpointed(model, part)) for part in BOTH}
    both, everything = kept_bytes(checkpointed(model)), kept_bytes(model)
    assert max(alone.values()) < 0.8 * everything
    assert both < 0.5 * everything
    assert both < min(alone.values())


def test_nothing_is_recomputed_without_gradients(monkeypatch):
    model = checkpointed(network())
    monkeypatch.setattr(recompute, "checkpoint", None)
    with torch.no_grad():
        loss(model)


def test_the_plain_decoder_offers_it():
    torch.manual_seed(0)
    decoder = ConvDecoder([4, 8, 16])
    again = copy.deepcopy(decoder)
    again.gradient_checkpointing = True
    levels = [torch.rand(1, 4 << i, 8 >> i, 8 >> i) for i in range(3)]
    for d in (decoder, again):
        sum(level.square().sum() for level in d(levels)).backward()
    for own, expected in zip(again.parameters(), decoder.parameters(), strict=True):
        assert torch.equal(own.grad, expected.grad)
    for own, expected in zip(again.buffers(), decoder.buffers(), strict=True):
        assert torch.equal(own, expected)


def test_an_unknown_part_is_named():
    with pytest.raises(ConfigError, match=r"gradient_checkpointing=encodr: .*encoder"):
        checkpoint_layers(network(), ["encodr"])


def test_a_part_without_support_is_named():
    model = network()
    model.encoder = TimmEncoder("resnet18")
    with pytest.raises(ConfigError, match="gradient_checkpointing=encoder: a TimmEncoder does not offer it"):
        checkpoint_layers(model, BOTH)


@pytest.mark.parametrize(("parts", "expected"), [("decoder", True), ([], False), (None, False)])
def test_one_part_or_none(parts, expected):
    model = checkpointed(network(), parts)
    assert model.decoder.gradient_checkpointing is expected
    assert model.encoder.gradient_checkpointing is False


class Dropping(ConvBlock):
    """A layer of another package that draws random numbers itself."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5))


@pytest.mark.parametrize("how", ["a subclass", "a layer of PyTorch"])
def test_a_layer_that_draws_itself_sees_the_same_numbers_twice(how):
    decoder = ConvDecoder([4]).train()
    if how == "a subclass":
        decoder.blocks[0].__class__ = Dropping
    else:
        decoder.blocks[0].conv1 = nn.Sequential(nn.Dropout(0.5), decoder.blocks[0].conv1)
    gradients = []
    for again in (False, True):
        decoder.gradient_checkpointing = again
        torch.manual_seed(0)
        x = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        decoder([x])[0].square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
