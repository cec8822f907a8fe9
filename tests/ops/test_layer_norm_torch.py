import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.ops import use_backend
from sa2depth.ops.layer_norm import layer_norm


def make(shape=(2, 5, 6), dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=random, dtype=dtype) for s in (shape, shape[-1:], shape[-1:])]


@pytest.mark.parametrize("gelu", [False, True])
def test_is_the_formula(gelu):
    x, weight, bias = make()
    deviation = (x.var(dim=-1, correction=0, keepdim=True) + 1e-3).sqrt()
    expected = (x - x.mean(dim=-1, keepdim=True)) / deviation * weight + bias
    if gelu:
        expected = expected * (1 + torch.erf(expected / 2**0.5)) / 2
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-3, gelu=gelu), expected)


def test_gradients():
    assert torch.autograd.gradcheck(layer_norm, [t.requires_grad_() for t in make((3, 8))])


def test_compiles_into_what_the_compiler_can_fuse():
    x, weight, bias = make((4, 16), dtype=torch.float32)
    found = []

    def note(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(layer_norm, fullgraph=True, backend=note)
    torch.testing.assert_close(compiled(x, weight, bias), F.layer_norm(x, (16,), weight, bias))
    assert any("layer_norm" in target for target in found)
    assert not any("sa2depth" in target for target in found)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [((2, 8), (4,), (8,)), ((2, 8), (8,), (1,)), ((2, 8), (2, 8), (2, 8)), ((), (), ())],
)
def test_shapes_that_do_not_belong_together(x, weight, bias):
    with pytest.raises(ShapeError, match="layer_norm wants"):
        layer_norm(torch.ones(x), torch.ones(weight), torch.ones(bias))


def test_kernels_asked_for_by_name_say_why_not():
    with use_backend("cuda"), pytest.raises(ConfigError, match="the input is on cpu"):
        layer_norm(*make())
