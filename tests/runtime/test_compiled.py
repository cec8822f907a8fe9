"""Compiled layers compute the same as the eager network, in few graphs.

PyTorch itself runs the graphs on the CPU (``aot_eager``, ``eager``); tests/gpu covers Triton.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from agreement import assert_same_depth, assert_same_values
from sa2depth.models import PRESETS, ConvDecoder, build_model
from sa2depth.models.decoders import ConvBlock
from sa2depth.ops import cpu, use_backend
from sa2depth.runtime.checkpointing import checkpoint_layers
from sa2depth.runtime.compiled import compile_layers, compiled, why_not_compiled

pytestmark = pytest.mark.slow

NANO = PRESETS["sa2depth_nano"]
RANGE = {"min_depth": 1e-3, "max_depth": 10.0}


@pytest.fixture(autouse=True, scope="module")
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs(function):
    """The result of a function, and the number of graphs compiled meanwhile."""
    before = counters["stats"]["unique_graphs"]
    return function(), counters["stats"]["unique_graphs"] - before


def step(model):
    """Depth and gradients of a training step with stochastic depth."""
    torch.manual_seed(1)
    depth = model(torch.rand(2, 3, 64, 64)).depth
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(depth.square().mean(), list(leaves.values()))
    return depth, dict(zip(leaves, gradients, strict=True))


@pytest.fixture(scope="module")
def trained():
    """A network with 3 layers in its third stage, compiled and eager, and the results of a step of each."""
    if reason := cpu.why_unavailable():
        pytest.skip(reason)
    encoder = {**NANO["encoder"], "depths": [1, 1, 3, 1], "drop_path_rate": 0.4}
    torch.manual_seed(0)
    eager = build_model({**NANO, "encoder": encoder, **RANGE})
    model = copy.deepcopy(eager)
    compile_layers(model, backend="aot_eager")
    with use_backend("cpu"):
        result, count = graphs(lambda: step(model))
        again = graphs(lambda: step(model))[1]
        expected, nothing = graphs(lambda: step(eager))
    return SimpleNamespace(**locals())


@pytest.mark.slow
def test_it_computes_what_the_eager_network_does(trained):
    (depth, gradients), (expected, references) = trained.result, trained.expected
    assert_same_depth(depth, expected)
    for name, reference in references.items():
        if reference.abs().max() > 1e-3:
            assert_same_values(gradients[name], reference, rms=1e-3, median=1e-4, what=name)


@pytest.mark.slow
def test_layers_of_one_size_share_a_graph(trained):
    # stem, 4 sizes of layers (6 layers), 3 downsamplings, 4 blocks, 3 upsamplings, 2 heads
    assert trained.count == 1 + 4 + 4 + 3 + 4 + 3 + 3
    assert trained.again == trained.nothing == 0
    assert not counters["graph_break"]


@pytest.mark.slow
def test_names_of_weights_stay(trained):
    assert list(trained.model.state_dict()) == list(trained.eager.state_dict())


@pytest.mark.slow
def test_a_copy_is_eager(trained):
    assert compiled(trained.model)
    assert not compiled(copy.deepcopy(trained.model))
    assert not compiled(trained.eager)


def test_another_encoder_is_compiled_as_a_whole():
    spec = {
        **NANO,
        "encoder": {
            "_target_": "sa2depth.models.encoders.TimmEncoder",
            "name": "tf_efficientnet_lite0",
            "channels": [8, 8, 16, 16],
        },
        "decoder": {"_target_": "sa2depth.models.ConvDecoder", "_partial_": True},
        "depth_head": {
            "_target_": "sa2depth.models.ConvHead",
            "_partial_": True,
            "hidden": 16,
            "bins": 64,
        },
    }
    torch.manual_seed(0)
    model = build_model({**spec, **RANGE}).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        expected = model(image).depth
        compile_layers(model, backend="eager")
        depth, count = graphs(lambda: model(image).depth)
        assert graphs(lambda: model.encoder(image))[1] == 0
    torch.testing.assert_close(depth, expected)
    # encoder, 2 sizes of channels at 4 sizes of maps in blocks, 3 upsamplings, 2 heads
    assert count == 1 + 4 + 3 + 3


class Stranger(nn.Module):
    """A decoder without traits."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, levels):
        return [self.mix(level) for level in levels]


class Relative(ConvBlock):
    """A subclass that computes something else, with a graph break."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x) + 1


def test_parts_without_traits_stay_eager_and_are_named(caplog):
    model = nn.ModuleDict({"encoder": Stranger(), "decoder": Stranger(), "head": ConvBlock(4)})
    compile_layers(model, backend="eager")
    assert compiled(model["encoder"])  # as a whole
    assert compiled(model["head"])
    assert not compiled(model["decoder"])
    assert "not compiled, because no layer inside has compile_unit: decoder (Stranger)" in caplog.text


def test_a_subclass_is_no_unit_and_a_foreign_layer_may_break_the_graph_of_one():
    decoder = ConvDecoder([4, 8]).eval()
    decoder.blocks[0].__class__ = Relative
    decoder.blocks[1].conv1 = Relative(8)
    levels = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
    with torch.no_grad():
        expected = decoder(levels)
        compile_layers(decoder, backend="eager")
        assert not compiled(decoder.blocks[0])
        for own, other in zip(decoder(levels), expected, strict=True):
            torch.testing.assert_close(own, other)


def test_recomputed_layers_are_compiled_too():
    torch.manual_seed(0)
    model = nn.ModuleDict({"decoder": ConvDecoder([4, 8])}).train()
    plain = copy.deepcopy(model)
    checkpoint_layers(model, "decoder")
    compile_layers(model, backend="aot_eager")
    levels = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
    for m in (model, plain):
        sum(level.square().sum() for level in m["decoder"](levels)).backward()
    for own, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    for own, expected in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(own, expected)


def test_it_says_why_layers_are_not_compiled(monkeypatch, tmp_path):
    assert why_not_compiled(torch.device("cpu")) == "cpu is not a CUDA device"
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Triton is not installed" in why_not_compiled(cuda)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "install gcc" in why_not_compiled(cuda)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "clang" else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert "install python3-dev" in why_not_compiled(cuda)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "GTX 1080")
    assert why_not_compiled(cuda) == "GTX 1080 is too old for Triton"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 0))
    assert why_not_compiled(cuda) == ""
