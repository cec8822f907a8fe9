"""A layer's traits hold for its own class, not for subclasses, which may compute something else."""

import pytest
from torch import nn

from sa2depth.nn.traits import owners, stated


class Says(nn.Module):
    compile_unit = True
    keep_float32 = False

    def forward(self, x):
        return x


class Sub(Says):
    pass


class SaysAgain(Says):
    compile_unit = "in parts"


def test_a_statement_is_not_inherited():
    assert stated(Says(), "compile_unit") is True
    assert stated(Sub(), "compile_unit") is None
    assert stated(SaysAgain(), "compile_unit") == "in parts"
    assert stated(SaysAgain(), "keep_float32") is None
    assert stated(nn.Linear(1, 1), "compile_unit") is None


def test_an_object_may_have_its_own_trait():
    layer = Sub()
    layer.keep_float32 = False
    assert stated(layer, "keep_float32") is False


def test_an_object_with_its_own_forward_loses_its_traits():
    layer = Says()
    layer.forward = lambda x: x + 1
    assert stated(layer, "compile_unit") is None
    layer.compile_unit = True
    assert stated(layer, "compile_unit") is True


@pytest.mark.parametrize("kind", [Says, Sub])
def test_torch_layers_belong_to_the_layer_around_them(kind):
    outer = Says()
    outer.inner = kind()
    outer.inner.part = nn.Sequential(nn.Linear(1, 1))
    outer.own = nn.Linear(1, 1)
    found = {id(layer): owner for layer, owner in owners(outer)}
    assert found[id(outer.inner.part[0])] is outer.inner
    assert found[id(outer.own)] is outer
    assert found[id(outer.inner)] is outer.inner
