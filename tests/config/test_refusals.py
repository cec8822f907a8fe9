"""Errors of the package's entry points about wrong arguments, and the helpers that word them."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from sa2depth.errors import ConfigError, as_typed, nearest
from sa2depth.infer import Predictor
from sa2depth.models import build_model
from sa2depth.ops import use_backend
from sa2depth.ops.precision import float32_products
from sa2depth.runtime.checkpointing import checkpoint_layers


@pytest.mark.parametrize("word", [1, None, True, 2.5, ["a"]])
def test_nearest_takes_anything(word):
    assert nearest(word, ["high", "medium"]) == "choose one of high, medium"
    assert "did you mean 1?" in nearest(1, [1, "x"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"), (True, "true"), (0.5, "0.5"), ("a b", "a b"), ([1, None], "[1,null]"), ((), "[]"),
        ({"a": False}, "{a:false}"), (OmegaConf.create({"a": [1, "x"]}), "{a:[1,x]}"),
    ],
)  # fmt: skip
def test_values_are_shown_as_they_are_typed(value, expected):
    assert as_typed(value) == expected


@pytest.mark.parametrize("precision", [1, None, ["high"]])
def test_a_precision_that_is_no_word(precision):
    with pytest.raises(ConfigError, match="hoose one of high, highest, medium"), float32_products(precision):
        pass


def test_a_back_end_that_is_no_word():
    with pytest.raises(ConfigError, match="no back end '3'"), use_backend(3):
        pass


@pytest.mark.parametrize(
    ("parts", "shown"), [(True, "true"), (3, "3"), (OmegaConf.create({"encoder": True}), r"\{encoder:true\}")]
)
def test_parts_that_are_no_list(parts, shown):
    message = rf"gradient_checkpointing={shown}: choose any of \[encoder, decoder\]"
    with pytest.raises(ConfigError, match=message):
        checkpoint_layers(nn.Module(), parts)


@pytest.mark.parametrize("parts", [False, None, [], OmegaConf.create([])])
def test_no_parts(parts):
    checkpoint_layers(nn.Module(), parts)


@pytest.mark.parametrize("part", [3, None, True])
def test_a_part_that_is_no_word(part):
    with pytest.raises(ConfigError, match=rf"gradient_checkpointing={as_typed(part)}: .*decoder, encoder"):
        checkpoint_layers(nn.Module(), [part])


@pytest.mark.parametrize(
    ("given", "file"),
    [("model.safetensors", "model.safetensors"), (Path("a/b.ckpt"), "a/b.ckpt"), (None, "model.safetensors")],
)
def test_a_predictor_of_a_file(given, file):
    with pytest.raises(ConfigError) as caught:
        Predictor(given)
    assert str(caught.value) == f'Predictor needs a model: Predictor(load_model("{file}"))'


@pytest.mark.parametrize("spec", ["sa2depth_nano", None, ["encoder"]])
def test_a_model_of_a_name(spec):
    with pytest.raises(
        ConfigError, match=r"build_model takes a spec \(dictionary\).*; create_model takes a name"
    ):
        build_model(spec)
