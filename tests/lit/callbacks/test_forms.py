"""Layers are compiled if that is requested, possible and worthwhile; the network is captured if possible.

tests/gpu checks the results of graphs.
"""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from brightness import Encoded, batch_of, module_of
from sa2depth.errors import ConfigError
from sa2depth.lit.callbacks.forms import CompiledLayers, CudaGraphs
from sa2depth.runtime.compiled import compile_layers, compiled


def begin(module, compile, steps=float("inf")):
    CompiledLayers(compile).on_fit_start(SimpleNamespace(estimated_stepping_batches=steps), module)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_layers_are_compiled_for_training_and_scored_as_they_are(fresh_dynamo):
    calls = []

    def backend(graph, inputs):
        calls.append("made")

        def run(*arguments):
            calls.append("run")
            return graph.forward(*arguments)

        return run

    module = module_of(Encoded())
    compile_layers(module.model, backend)
    module.training_step(batch_of(), 0).backward()
    assert calls == ["made", "run"]
    for size in ((32, 64), (64, 64), (32, 96)):
        module.validation_step(batch_of(size=size), 0)
        module.test_step(batch_of(size=size), 0)
        module(batch_of(size=size)["image"])
    assert calls == ["made", "run"]
    module.training_step(batch_of(), 0)
    assert calls == ["made", "run", "run"]


def test_where_layers_cannot_be_compiled_auto_trains_them_as_they_are(caplog):
    module = module_of(Encoded())
    with caplog.at_level("DEBUG"):
        begin(module, "auto")
    assert not compiled(module.model)
    assert "layers are not compiled: cpu is not a CUDA device" in caplog.text
    assert module.training_step(batch_of(), 0).isfinite()


def test_where_layers_cannot_be_compiled_true_is_an_error():
    with pytest.raises(ConfigError, match=r"compile=true: cpu is not a CUDA device; use compile=auto"):
        begin(module_of(Encoded()), True)


@pytest.mark.parametrize(("compile", "expected"), [("auto", True), (True, True), (False, False)])
def test_where_layers_can_be_compiled_they_are_once(compile, expected, monkeypatch, fresh_dynamo):
    monkeypatch.setattr("sa2depth.lit.callbacks.forms.why_not_compiled", lambda device: "")
    module = module_of(Encoded())
    begin(module, compile)
    assert compiled(module.model) is expected
    first = module.model.encoder._compiled_call_impl
    begin(module, compile)  # a second fit
    assert module.model.encoder._compiled_call_impl is first


@pytest.mark.parametrize(("steps", "expected"), [(9999, False), (10_000, True), (float("inf"), True)])
def test_auto_compiles_what_is_long_enough(steps, expected, monkeypatch, fresh_dynamo):
    monkeypatch.setattr("sa2depth.lit.callbacks.forms.why_not_compiled", lambda device: "")
    module = module_of(Encoded())
    begin(module, "auto", steps)
    assert compiled(module.model) is expected


def test_another_word_for_compile_is_an_error():
    with pytest.raises(ConfigError, match="compile=yes: choose auto, true or false"):
        CompiledLayers("yes")
    with pytest.raises(ConfigError, match="cuda_graph=maybe: choose auto, true or false"):
        CudaGraphs("maybe")


def on_cuda(module):
    """Make a module on the CPU claim to be on a CUDA device."""
    module.__class__ = type("OnCuda", (type(module),), {"device": torch.device("cuda", 0)})


def trainer_of(batches=1, strategy=None):
    return SimpleNamespace(accumulate_grad_batches=batches, strategy=strategy or SingleDeviceStrategy())


def test_graphs_without_a_cuda_device():
    module, graphs = module_of(Encoded()), CudaGraphs("auto")
    graphs.on_fit_start(trainer_of(), module)
    graphs.on_train_epoch_start(trainer_of(), module)
    assert module.training_step(batch_of(), 0).isfinite()
    with pytest.raises(ConfigError, match="cuda_graph=true: cpu is no CUDA device"):
        CudaGraphs(True).on_fit_start(trainer_of(), module)


@pytest.mark.parametrize(
    ("option", "batches", "strategy", "expected"),
    [
        ("auto", 1, SingleDeviceStrategy(), "ready"),
        ("auto", 2, SingleDeviceStrategy(), "without"),
        ("auto", 1, DDPStrategy(), "ready"),
        ("auto", 1, FSDPStrategy(), "without"),
        (True, 1, DDPStrategy(), "ready"),
        (True, 2, SingleDeviceStrategy(), "accumulate_grad_batches"),
        (True, 1, FSDPStrategy(), "FSDPStrategy may move the weights"),
        (False, 1, SingleDeviceStrategy(), "without"),
    ],
)
def test_when_training_is_captured(option, batches, strategy, expected):
    module, graphs, trainer = module_of(Encoded()), CudaGraphs(option), trainer_of(batches, strategy)
    on_cuda(module)
    if expected not in ("ready", "without"):
        with pytest.raises(ConfigError, match=f"cuda_graph=true: .*{expected}"):
            graphs.on_fit_start(trainer, module)
        return
    graphs.on_fit_start(trainer, module)
    graphs.on_train_epoch_start(trainer, module)
    assert (module.graphed is not None) is (expected == "ready")
    graphs.on_fit_end(trainer, module)
    assert module.graphed is None


def test_what_callbacks_change_is_captured_again():
    module, graphs, trainer = module_of(Encoded()), CudaGraphs("auto"), trainer_of()
    on_cuda(module)
    module.model.norm = torch.nn.BatchNorm2d(3)

    def captured():
        graphs.on_train_epoch_start(trainer, module)
        return module.graphed

    first = captured()
    assert first is not None
    assert captured() is first
    seen = [first]
    for change in (
        lambda: module.model.encoder.requires_grad_(False),
        lambda: module.model.norm.eval(),
        lambda: setattr(module.model.norm, "running_mean", torch.zeros(3)),
        lambda: setattr(module.model.norm, "momentum", None),
    ):
        change()
        seen.append(captured())
        assert seen[-1] is not None
        assert seen[-1] is not seen[-2]
        assert captured() is seen[-1]
    trainer.accumulate_grad_batches = 2
    assert captured() is None
    trainer.accumulate_grad_batches = 1
    assert captured() is not None


@pytest.mark.parametrize("option", ["auto", False])
@pytest.mark.parametrize("stage", ["validation", "test"])
def test_what_is_scored_is_replayed_on_cuda_and_gives_its_memory_back(option, stage, monkeypatch):
    made = []

    class Replayed:
        def __init__(self, function, calls):
            made.append(calls)
            self.function = function

        def __call__(self, shown):
            made.append("replayed")
            return self.function(shown)

    monkeypatch.setattr("sa2depth.lit.callbacks.forms.Graphed", Replayed)
    module, graphs, batch = module_of(Encoded()), CudaGraphs(option), batch_of()
    flip = module.protocol.flip
    expected = module(batch["image"])
    on_cuda(module)
    getattr(graphs, f"on_{stage}_epoch_start")(trainer_of(), module)
    torch.testing.assert_close(module(batch["image"]), expected, rtol=0, atol=0)
    assert made == ([1 + flip, *["replayed"] * (1 + flip)] if option else [])
    getattr(module, f"{stage}_step")(batch, 0)
    del made[:]
    getattr(graphs, f"on_{stage}_epoch_end")(trainer_of(), module)
    torch.testing.assert_close(module(batch["image"]), expected, rtol=0, atol=0)
    assert made == []


def test_graphs_are_refused_where_there_is_no_device_for_them():
    with pytest.raises(ConfigError, match="cuda_graph=true: cpu is no CUDA device"):
        CudaGraphs(True).on_test_epoch_start(trainer_of(), module_of(Encoded()))
