"""The registry says what is true of each operator."""

import inspect

import pytest
import torch

import sa2depth.ops
from sa2depth.ops.choice import NAMES
from sa2depth.ops.registry import OPERATORS

EVERY = pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)


@EVERY
def test_the_oracle_comes_last_and_takes_everything(operator):
    names = [backend.name for backend in operator.backends]
    assert names[-1] == "torch"
    assert len(set(names)) == len(names)
    assert set(names) <= set(NAMES) - {"auto"}
    assert operator.backends[-1].why_not(object()) == ""


@EVERY
def test_a_name_is_a_public_function(operator):
    assert callable(getattr(sa2depth.ops, operator.name))


@EVERY
def test_the_example_is_small_and_has_gradients(operator):
    function, leaves = operator.example(torch.device("cpu"), torch.float64)
    gradients = torch.autograd.grad(function().sum(), leaves)
    assert [g.shape for g in gradients] == [t.shape for t in leaves]
    assert max(t.numel() for t in leaves) < 100_000


@EVERY
def test_what_is_trusted_belongs_to_the_sources(operator):
    for backend in operator.backends:
        assert all(file.is_file() for file in backend.sources)
        assert bool(backend.sources) == (backend.name not in ("torch", "mamba_ssm"))


@EVERY
def test_run_and_why_not_take_the_same_arguments(operator, monkeypatch):
    seen = []

    def note(operator, *arguments):
        seen.append(arguments)
        return operator.backends[-1].run

    monkeypatch.setattr(inspect.getmodule(operator.example), "choose", note)
    operator.example(torch.device("cpu"), torch.float32)[0]()
    for backend in operator.backends:
        assert isinstance(backend.why_not(*seen[0]), str)
