"""Layers are compiled for training where that was asked for, can be done and is worth it; never for scoring."""

from types import SimpleNamespace

import pytest
import torch

from brightness import Encoded, batch_of, module_of
from sa2depth.errors import ConfigError
from sa2depth.lit import CompiledLayers, CudaGraphs
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
    assert "layers are not compiled: cpu is no CUDA device" in caplog.text
    assert module.training_step(batch_of(), 0).isfinite()


def test_where_layers_cannot_be_compiled_true_is_an_error():
    with pytest.raises(ConfigError, match=r"compile=true: cpu is no CUDA device; use compile=auto"):
        begin(module_of(Encoded()), True)


@pytest.mark.parametrize(("compile", "expected"), [("auto", True), (True, True), (False, False)])
def test_where_layers_can_be_compiled_they_are_once(compile, expected, monkeypatch, fresh_dynamo):
    monkeypatch.setattr("sa2depth.lit.callbacks.compiled.why_not_compiled", lambda device: "")
    module = module_of(Encoded())
    begin(module, compile)
    assert compiled(module.model) is expected
    first = module.model.encoder._compiled_call_impl
    begin(module, compile)  # a second fit
    assert module.model.encoder._compiled_call_impl is first


@pytest.mark.parametrize(("steps", "expected"), [(9999, False), (10_000, True), (float("inf"), True)])
def test_auto_compiles_what_is_long_enough(steps, expected, monkeypatch, fresh_dynamo):
    monkeypatch.setattr("sa2depth.lit.callbacks.compiled.why_not_compiled", lambda device: "")
    module = module_of(Encoded())
    begin(module, "auto", steps)
    assert compiled(module.model) is expected


def test_another_word_for_compile_is_an_error():
    with pytest.raises(ConfigError, match="compile=yes: choose auto, true or false"):
        CompiledLayers("yes")
    with pytest.raises(ConfigError, match="cuda_graph=maybe: choose auto, true or false"):
        CudaGraphs("maybe")
