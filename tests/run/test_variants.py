"""Parts that are not the paper's, composed as on the command line, can do everything that the paper's parts can.

Attention and feed-forward are one file and one YAML each. Training from CUDA graphs is in gpu/test_graphed_training.py.
"""

import copy

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch._dynamo.utils import counters

from sa2depth import train as training_program
from sa2depth.errors import ConfigError
from sa2depth.resources import conf_dir
from sa2depth.run.build import build_network
from sa2depth.runtime.checkpointing import checkpoint_layers
from sa2depth.runtime.compiled import compile_layers
from sa2depth.runtime.inference import for_inference
from sa2depth.weights import load_model, save_model

pytestmark = pytest.mark.slow

VARIANTS = {
    "window attention": ["attention=window", "decoder.attention.window=4"],
    "plain MLP": ["feed_forward=mlp"],
    "no modulator": ["attention=flexible", "decoder.attention.modulator=null", "decoder.attention.ranks=[[0,1]]"],
    "other heads": [
        *("bins=uniform", "bins.bins=64", "+head.directions=2"),
        *("+head.fusion._target_=sa2depth.nn.SumFusion", "+head.fusion._partial_=true"),
    ],
}  # fmt: skip
TRAINED = ["window attention", "plain MLP"]
TWO_STEPS = (
    *(
        "trainer=cpu",
        "schedule=constant",
        "optim.lr=1e-3",
        "trainer.check_val_every_n_epoch=1",
        "baseline=false",
    ),
    *(
        "data.train.count=2",
        "data.val.count=1",
        "data.test.count=1",
        "data.batch_size=1",
        "data.num_workers=0",
    ),
    *("data.train.height=32", "data.train.width=64"),
)


def composed(*overrides, folder="out"):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=[*overrides, f"paths.output_dir={folder}"])


@pytest.fixture
def network():
    """``(variant) -> network`` whose batch norms have statistics."""

    def build(variant):
        torch.manual_seed(0)
        model = build_network(composed(*VARIANTS[variant]))
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, 0, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                nn.init.normal_(norm.bias, 0, 0.3)
        return model

    return build


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def trained(folder, variant, epochs, *overrides, patch):
    """State of the network after a training of two steps per epoch, and its losses."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        patch.setenv(name, "0")
    patch.setattr(L.Trainer, "test", lambda *args, **kwargs: None)
    patch.setattr(training_program, "finish", lambda *args, **kwargs: {"abs_rel": 0.0})
    options = (*VARIANTS[variant], *TWO_STEPS, f"trainer.max_epochs={epochs}", *overrides)
    training_program.train(composed(*options, folder=folder))
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize("variant", TRAINED)
def test_it_trains_and_goes_on_exactly(variant, tmp_path, monkeypatch):
    two = trained(tmp_path / "two", variant, 2, patch=monkeypatch)
    one = trained(tmp_path / "one", variant, 1, patch=monkeypatch)
    resume = f"resume={tmp_path / 'one/checkpoints/last.ckpt'}"
    on = trained(tmp_path / "on", variant, 2, resume, patch=monkeypatch)
    assert [state["global_step"] for state in (one, two, on)] == [2, 4, 4]
    for name, tensor in two["state_dict"].items():
        assert torch.equal(on["state_dict"][name], tensor), name
    assert not all(torch.equal(one["state_dict"][name], t) for name, t in two["state_dict"].items())
    assert two["hyper_parameters"]["spec"]["decoder"].keys() & {"attention", "feed_forward"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_of_it_is_trusted_and_gives_the_same_depth(variant, network, image, tmp_path):
    model = network(variant).eval()
    again = load_model(save_model(model, tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(image).depth, model(image).depth)


@pytest.mark.parametrize("variant", VARIANTS)
def test_norms_are_folded_and_the_depth_is_the_same(variant, network, image):
    model, image = network(variant).eval().double(), image.double()
    fast = for_inference(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(image).depth, model(image).depth, rtol=1e-10, atol=1e-10)
    assert not [m for m in fast.decoder.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_rounded_no_worse_than_autocast_does(variant, network, image):
    model = network(variant).eval()
    fast = for_inference(model, torch.bfloat16)
    with torch.no_grad():
        exact = model(image).depth
        with torch.autocast("cpu", torch.bfloat16):
            expected, actual = model(image).depth, fast(image).depth
    assert (actual - exact).abs().mean() < 1.5 * (expected - exact).abs().mean()


@pytest.mark.parametrize(
    "variant", [*TRAINED, *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v not in TRAINED)]
)
def test_its_layers_compile_into_as_many_graphs_as_the_papers(variant, network, image):
    torch._dynamo.reset()
    counters.clear()
    model = network(variant).eval()
    with torch.no_grad():
        features = model.extract_features(image)
        expected = model.depth_head(model.decoder(features))
        compile_layers(model, backend="eager")
        torch.testing.assert_close(model.depth_head(model.decoder(features)), expected)
    assert counters["stats"]["unique_graphs"] == 4 + 3 + 1  # blocks, upsamplings, head
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.parametrize("variant", TRAINED)
def test_layers_that_run_again_give_the_same_gradients(variant, network, image):
    plain = network(variant).train()
    model = copy.deepcopy(plain)
    checkpoint_layers(model, ["encoder", "decoder"])
    for m in (plain, model):
        m(image).depth.square().mean().backward()
    for (name, expected), own in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (expected.grad is None and own.grad is None) or torch.equal(own.grad, expected.grad), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["decoder=conv", "attention=window"],
            "decoder.attention: sa2depth.models.ConvDecoder has no argument of that name",
        ),
        (
            ["attention=window", "+decoder.attention.windw=4"],
            r"decoder.attention.windw: .*did you mean window",
        ),
        (["feed_forward=mlp", "decoder.feed_forward.expansion=2.5"], "expected a whole number"),
    ],
)
def test_what_a_decoder_does_not_take_is_said(options, words):
    with pytest.raises(ConfigError, match=words):
        training_program.train(composed(*options))
