"""The selective scan in Triton, against the torch path in float64."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import selective_scan_2d, use_backend
from sa2depth.ops.selective_scan import common
from sa2depth.ops.selective_scan import triton as module
from sa2depth.ops.selective_scan.torch import run as selective_scan_torch

NAMES = ("output", "x", "x_proj_weight", "dt_weight", "dt_bias", "a_log", "d_skip")
TOLERANCES = {torch.bfloat16: 1.2e-2, torch.float16: 1.6e-3}


@pytest.fixture(autouse=True)
def _small_pieces(device, monkeypatch):
    """The interpreter is slow: what a GPU does with 64 tokens at a time is seen with 8, too."""
    if device.type == "cpu":
        monkeypatch.setattr(module, "CHUNK", 8)
        monkeypatch.setattr(common, "CHUNK", 8)
        monkeypatch.setattr(module, "_PROGRAMS", 1)


def make(device, size=(3, 7), batch=1, channels=5, rank=3, states=4, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    decays = torch.arange(1.0, states + 1, dtype=torch.float64).log()
    inputs = [
        draw(batch, channels, *size),
        draw(4, rank + 2 * states, channels) * channels**-0.5,
        draw(4, channels, rank) * rank**-0.5,
        draw(4, channels) - 2,
        decays + 0.1 * draw(4 * channels, states),
        1 + 0.1 * draw(4 * channels),
    ]
    return [t.to(device, dtype).requires_grad_() for t in inputs]


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def run(function, inputs):
    """Output and gradients for a weighting that depends on nothing but the shape; it fits into any type."""
    output = function(*inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return output, *torch.autograd.grad((output * weight.to(output)).sum(), inputs)


def check(inputs, tolerance=2e-6):
    actual = run(selective_scan_2d, inputs)
    expected = run(selective_scan_torch, [t.detach().double().requires_grad_() for t in inputs])
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


# A chunk, a part of one, several with a last one of one token, of one burst and one token, one column, one row.
@pytest.mark.parametrize("size", [(2, 4), (1, 1), (3, 3), (3, 7), (9, 1), (1, 10)])
def test_forward_and_gradients(device, size):
    check(make(device, size))


@pytest.mark.parametrize(("channels", "rank", "states"), [(33, 1, 1), (4, 5, 3)])
def test_any_number_of_channels_rank_and_states(device, channels, rank, states):
    check(make(device, (2, 5), channels=channels, rank=rank, states=states))


def test_several_images(device):
    check(make(device, (2, 5), batch=2))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_half_precision(device, dtype):
    x, *weights = make(device)
    check([x.detach().to(dtype).requires_grad_(), *weights], TOLERANCES[dtype])


def test_channels_last_and_strided_inputs_give_the_same_bits(device):
    inputs = make(device)
    expected = run(selective_scan_2d, inputs)
    wide = torch.randn(1, 10, 7, 3, device=device)
    for x in (
        inputs[0].detach().to(memory_format=torch.channels_last),
        wide[:, ::2].transpose(2, 3).copy_(inputs[0].detach()),
    ):
        assert not x.is_contiguous()
        for a, e in zip(run(selective_scan_2d, [x.requires_grad_(), *inputs[1:]]), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_no_image(device):
    output, *gradients = run(selective_scan_2d, make(device, batch=0))
    assert output.shape == (0, 5, 3, 7)
    assert all(not g.any() for g in gradients)


def test_without_gradients_nothing_is_kept(device):
    inputs = [t.detach() for t in make(device)]
    torch.testing.assert_close(
        selective_scan_2d(*inputs), selective_scan_torch(*inputs), rtol=1e-5, atol=1e-5
    )
    kept = module.selective_scan(inputs[0].flatten(2).transpose(1, 2), *inputs[1:], 3, False)[1:]
    assert [t.numel() for t in kept] == [0, 0]


def test_a_loss_that_does_not_want_the_gradient_of_x(device):
    x, *weights = make(device, (2, 3))
    bias = weights[2]
    inputs = [x.detach(), *(t.detach() for t in weights)]
    inputs[3] = bias
    (own,) = torch.autograd.grad(selective_scan_2d(*inputs).square().sum(), [bias])
    with use_backend("torch"):
        (expected,) = torch.autograd.grad(selective_scan_2d(*inputs).square().sum(), [bias])
    assert relative(own, expected) < 1e-5


def test_second_derivatives_are_refused(device):
    inputs = make(device, (2, 3))
    (gradient,) = torch.autograd.grad(
        selective_scan_2d(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_what_the_kernels_do_not_take(device):
    for inputs, reason in (
        (make(device, dtype=torch.float64), "float64"),
        (make(device, states=33), "state sizes up to 32"),
        (make(device, rank=65), "ranks up to 64"),
    ):
        with pytest.raises(ConfigError, match=reason):
            selective_scan_2d(*inputs)
    large = torch.empty((1, 512, 1024, 1024), device="meta")
    assert "shape" in module.why_not(large, *make(device)[1:])


def test_operator_obeys_the_rules_of_torch_library(device):
    x, *weights = make(device, (2, 5))
    tokens = x.detach().flatten(2).transpose(1, 2).requires_grad_()
    torch.library.opcheck(module.selective_scan, (tokens, *weights, 2, True), atol=1e-5, rtol=1e-4)


def test_compiles_without_a_graph_break(device):
    inputs = make(device, (2, 5))
    compiled = torch.compile(selective_scan_2d, fullgraph=True, backend="aot_eager")
    for a, e in zip(run(compiled, inputs), run(selective_scan_2d, inputs), strict=True):
        assert relative(a, e) < 1e-6


def test_two_runs_give_the_same_bits(device):
    inputs = make(device)
    for a, b in zip(run(selective_scan_2d, inputs), run(selective_scan_2d, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *TOLERANCES])
@pytest.mark.parametrize("size", [(17, 31), (96, 128)])
def test_wide_maps(device, size, dtype):
    x, *weights = make(device, size, batch=2, channels=192, rank=24, states=16)
    check([x.detach().to(dtype).requires_grad_(), *weights], TOLERANCES.get(dtype, 1e-5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *TOLERANCES])
def test_the_size_of_the_network(device, dtype):
    x, *weights = make(device, (120, 160), channels=512, rank=16, states=16)
    check([x.detach().to(dtype).requires_grad_(), *weights], TOLERANCES.get(dtype, 2e-5))


@pytest.mark.gpu
def test_captures_into_a_graph(device):
    inputs = [t.detach() for t in make(device, (17, 31), channels=64, rank=16, states=16)]
    expected = selective_scan_2d(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = selective_scan_2d(*inputs)
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    check(make(torch.device("cuda", 1), (17, 31), channels=64), tolerance=1e-5)
    assert torch.cuda.current_device() == 0
