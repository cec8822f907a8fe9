"""The selective scan's kernels on a CUDA device, against the torch path in float64."""

import pytest
import torch

from sa2depth.ops import selective_scan_2d, use_backend
from sa2depth.ops.selective_scan import cuda as module
from sa2depth.ops.selective_scan.torch import run as selective_scan_torch

pytestmark = pytest.mark.gpu

NAMES = ("x", "x_proj_weight", "dt_weight", "dt_bias", "a_log", "d_skip")


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cuda"):
        yield


def make(size, batch=2, channels=128, rank=16, dtype=torch.float32, device="cuda", seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    inputs = [
        draw(batch, channels, *size),
        draw(4, rank + 32, channels) * channels**-0.5,
        draw(4, channels, rank) * rank**-0.5,
        draw(4, channels) - 3,
        torch.arange(1.0, 17.0, dtype=torch.float64).log() + 0.1 * draw(4 * channels, 16),
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
    return output, torch.autograd.grad((output * weight.to(output)).sum(), inputs)


def check(inputs, tolerance):
    reference = [t.detach().double().requires_grad_() for t in inputs]
    (expected, expected_gradients), (actual, gradients) = (
        run(selective_scan_torch, reference),
        run(selective_scan_2d, inputs),
    )
    errors = {"y": relative(actual, expected)}
    errors |= {
        name: relative(*pair) for name, *pair in zip(NAMES, gradients, expected_gradients, strict=True)
    }
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance, errors
    assert actual.dtype == inputs[0].dtype
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]


@pytest.mark.parametrize("size", [(1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (96, 128)])
def test_forward_and_gradients(size):
    check(make(size), tolerance=1e-5)


@pytest.mark.parametrize("segments", ["one", "most"])
def test_any_number_of_segments(segments, monkeypatch):
    for fills in ("_FILLS_FORWARD", "_FILLS_BACKWARD"):
        monkeypatch.setattr(module, fills, {"one": 0, "most": 1e9}[segments])
    check(make((30, 41), channels=64), tolerance=1e-5)


@pytest.mark.parametrize(("channels", "rank"), [(5, 1), (70, 3), (512, 16), (192, 24)])
def test_any_number_of_channels_and_rank(channels, rank):
    check(make((12, 23), channels=channels, rank=rank), tolerance=1e-5)


def test_the_size_of_the_network():
    check(make((120, 160), batch=1, channels=512), tolerance=2e-5)


TOLERANCES = {torch.bfloat16: 1.2e-2, torch.float16: 1.6e-3}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [(1, 70), (17, 31), (96, 128)])
def test_half_precision(size, dtype):
    check(make(size, dtype=dtype), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_half_precision_beside_float32_weights(dtype):
    x, *weights = make((120, 160), batch=1, channels=512)
    check([x.detach().to(dtype).requires_grad_(), *weights], TOLERANCES[dtype])


@pytest.mark.parametrize(("channels", "rank"), [(70, 3), (192, 24)])
def test_half_precision_of_any_number_of_channels_and_rank(channels, rank):
    check(make((12, 23), channels=channels, rank=rank, dtype=torch.bfloat16), TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_half_precision_output_is_little_worse_than_its_rounding(dtype):
    narrow = [t.detach() for t in make((60, 80), dtype=dtype)]
    expected = selective_scan_torch(*(t.double() for t in narrow))
    assert relative(selective_scan_2d(*narrow), expected) < 3 * relative(expected.to(dtype), expected)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.bfloat16, 1), (torch.float32, 2)])
def test_peak_memory(dtype, factor):
    x, *weights = make((120, 160), batch=8, channels=512)
    x = x.detach().to(dtype).to(memory_format=torch.channels_last)

    def peak(train):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(train)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.set_grad_enabled(train):
            y = selective_scan_2d(leaf, *weights)
        if train:
            y.backward(torch.ones_like(y))
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    peak(train=True)  # workspaces of the matrix products
    output = x.numel() * x.element_size() / 1e9
    inference, training = peak(train=False) - output, peak(train=True)
    print(f"{dtype}: inference {inference:.2f} GB besides the output, training {training:.2f} GB")
    assert inference < 0.7 * factor
    assert training < 2.2 * factor


def test_autocast_changes_nothing():
    inputs = [t.detach() for t in make((17, 31))]
    with torch.autocast("cuda", torch.bfloat16):
        inside = selective_scan_2d(*inputs)
    torch.testing.assert_close(inside, selective_scan_2d(*inputs), rtol=0, atol=0)


def test_no_image():
    with use_backend("auto"):
        inputs = make((5, 6), batch=0)
        output, gradients = run(selective_scan_2d, inputs)
    assert output.shape == (0, 128, 5, 6)
    assert all(not g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_layouts(dtype):
    inputs = make((17, 31), dtype=dtype)
    expected = run(selective_scan_2d, inputs)
    wide = torch.randn(2, 256, 31, 17, device="cuda", dtype=dtype)
    for x in (
        inputs[0].detach().to(memory_format=torch.channels_last),
        wide[:, ::2].transpose(2, 3).copy_(inputs[0].detach()),
    ):
        assert not x.is_contiguous()
        actual = run(selective_scan_2d, [x.requires_grad_(), *inputs[1:]])
        for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bits(dtype):
    inputs = make((60, 80), dtype=dtype)
    first, second = run(selective_scan_2d, inputs), run(selective_scan_2d, inputs)
    for a, b in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_written(dtype):
    inputs = make((17, 31), dtype=dtype)
    torch.use_deterministic_algorithms(True)  # also fills new memory with NaN
    try:
        output, gradients = run(selective_scan_2d, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert output.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_obeys_the_rules_of_torch_library(dtype):
    x, *weights = make((9, 14), batch=1, channels=64)
    tokens = x.detach().flatten(2).transpose(1, 2).to(dtype)
    arguments = (tokens.requires_grad_(), *weights, 9, True)
    torch.library.opcheck(module.selective_scan, arguments, atol=1e-5, rtol=1e-4)
    torch.library.opcheck(module.to_tokens, (torch.randn(2, 70, 9, 11, device="cuda", requires_grad=True),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_without_a_graph_break(dtype):
    inputs = make((17, 31), dtype=dtype)
    compiled = torch.compile(selective_scan_2d, fullgraph=True)
    expected, actual = run(selective_scan_2d, inputs), run(compiled, inputs)
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        assert relative(a, e) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captures_into_a_graph(dtype):
    inputs = [t.detach() for t in make((17, 31), dtype=dtype)]
    expected = selective_scan_2d(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = selective_scan_2d(*inputs)
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)
    inputs[0].mul_(0.5)
    graph.replay()
    torch.testing.assert_close(captured, selective_scan_2d(*inputs), rtol=0, atol=0)


def test_runs_on_the_current_stream():
    inputs = [t.detach() for t in make((60, 80))]
    expected = selective_scan_2d(*inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
        inputs[0].mul_(2)
        inputs[0].mul_(0.5)
        actual = selective_scan_2d(*inputs)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    inputs = make((17, 31), device="cuda:1")
    assert torch.cuda.current_device() == 0
    check(inputs, tolerance=1e-5)
    assert torch.cuda.current_device() == 0


def test_other_state_sizes_run_in_torch():
    inputs = make((5, 6), channels=8)
    inputs[1], inputs[4] = inputs[1].detach()[:, :-16], inputs[4].detach()[:, :8]
    with use_backend("auto"):
        torch.testing.assert_close(selective_scan_2d(*inputs), selective_scan_torch(*inputs))


def test_second_derivatives_are_refused():
    inputs = make((5, 6), channels=64)
    (gradient,) = torch.autograd.grad(
        selective_scan_2d(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
