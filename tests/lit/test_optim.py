"""AdamW's groups: decay and learning rate of each parameter, and no parameter is forgotten."""

import math

import pytest
import torch

from sa2depth import create_model
from sa2depth.errors import ConfigError
from sa2depth.lit.optim import adamw, parameter_groups


@pytest.fixture(scope="module")
def model():
    return create_model("sa2depth_nano", min_depth=0.1, max_depth=10)


def _decay_by_name(model, optimizer):
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: decay.get(id(p)) for name, p in model.named_parameters()}


def test_every_trainable_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, 1e-4, 1e-2)
    seen = [id(p) for group in groups for p in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {id(p) for p in model.parameters() if p.requires_grad}


def test_norms_biases_and_the_scans_own_do_not_decay(model):
    decay = _decay_by_name(model, adamw(model, lr=1e-4, weight_decay=0.3))
    assert {v for k, v in decay.items() if k.endswith(("bias", "a_log", "d_skip"))} == {0.0}
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.BatchNorm2d)}
    assert norms
    assert all(decay[f"{name}.weight"] == 0.0 for name in norms)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert all(decay[f"{name}.weight"] == 0.3 for name in convolutions)
    assert decay["depth_head.scan.x_proj_weight"] == 0.3


def test_decay_shrinks_a_weight_and_leaves_a_bias(model):
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    optimizer = adamw(layer, lr=0.1, weight_decay=0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, torch.full_like(layer.weight, 0.95))
    assert torch.equal(layer.bias, torch.ones(2))


def test_the_encoder_learns_at_its_own_rate(model):
    groups = parameter_groups(model, 1e-3, 1e-2, encoder_lr_factor=0.1)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx(
        {"encoder": 1e-4, "encoder, no decay": 1e-4, "decoder": 1e-3, "decoder, no decay": 1e-3}
    )


@pytest.mark.parametrize("option", ["lr", "weight_decay", "eps", "encoder_lr_factor"])
@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf])
def test_numbers_that_no_training_can_use_are_refused_by_name(option, value):
    with pytest.raises(
        ConfigError, match=rf"^adamw\({option}={value}\): expected a finite number of at least 0$"
    ):
        adamw(torch.nn.Linear(2, 2), **{"lr": 1e-3, option: value})


@pytest.mark.parametrize("option", ["lr", "weight_decay", "eps", "encoder_lr_factor"])
def test_nought_is_a_number(option):
    adamw(torch.nn.Linear(2, 2), **{"lr": 1e-3, option: 0})
