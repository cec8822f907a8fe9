"""The gated convolution's kernels on a CUDA device, against the torch path in float64."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import gated_conv, use_backend
from sa2depth.ops.gated_conv import cuda as module

pytestmark = pytest.mark.gpu

NAMES = ("output", "input", "kernel", "bias")
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Largest error, as a share of the norm: the input's gradient is rounded in two parts, and as their sum."""


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cuda"):
        yield


def make(size=(17, 31), batch=2, channels=64, dtype=torch.float32, scale=0.3, device="cuda", seed=0):
    """x channels last, kernel, bias; kernel and bias float32."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, device=device, dtype=torch.float32)

    x = draw(batch, channels, *size).to(dtype).to(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (x, scale * draw(channels, 4, 3, 3), scale * draw(channels))]


def run(inputs, function=gated_conv):
    """Output and gradients for a weighting that depends on nothing but the shape."""
    output = function(*inputs)
    random = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=random, device=output.device)
    return output, *torch.autograd.grad(output, inputs, weight.bfloat16().to(output.dtype))


def reference(inputs):
    with use_backend("torch"):
        return run([t.detach().double().requires_grad_() for t in inputs])


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=None):
    actual, expected = run(inputs), reference(inputs)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < (tolerance or ROUNDING[inputs[0].dtype]), errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("size", [(1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (61, 79)])
def test_forward_and_gradients(size, dtype):
    check(make(size, dtype=dtype))


@pytest.mark.parametrize("channels", [4, 68, 320, 5120])
def test_channels(channels):
    check(make((12, 23), channels=channels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "channels"), [((120, 160), 1024), ((15, 20), 2048), ((88, 304), 256), ((11, 38), 5120)], ids=str
)
def test_sizes_of_the_network(size, channels, dtype):
    check(make(size, batch=1, channels=channels, dtype=dtype))


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 4.0])
def test_gates_that_are_nearly_closed_or_open(dtype, scale):
    inputs = make((40, 64), dtype=dtype, scale=scale)
    check(inputs)
    output, expected = gated_conv(*inputs), reference(inputs)[0]
    # element by element: the rounding of the output, and that of the fast tanh; where the convolution's terms cancel
    # their own rounding is left
    share = {torch.float32: 1e-5, torch.bfloat16: 2**-8 + 2**-10, torch.float16: 2**-11 + 2**-13}[dtype]
    torch.testing.assert_close(output.double(), expected, rtol=share, atol=2e-5 * max(scale, 1))


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_always_the_same_bits(dtype):
    inputs = make((60, 80), channels=256, dtype=dtype)
    for a, e in zip(run(inputs), run(inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_everything_is_written():
    torch.use_deterministic_algorithms(True)  # which also fills new memory with NaN
    try:
        assert all(t.isfinite().all() for t in run(make()))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_converts_x_and_nothing_else(dtype):
    x, kernel, bias = make()
    with torch.autocast("cuda", dtype):
        inside = run((x, kernel, bias))
    assert inside[0].dtype == dtype
    assert [g.dtype for g in inside[1:]] == [torch.float32] * 3
    narrow = [x.detach().to(dtype).requires_grad_(), kernel, bias]
    for a, e in zip(inside, run(narrow), strict=True):
        torch.testing.assert_close(a.float(), e.float(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 64, 5, 6), (2, 64, 0, 6)])
def test_nothing_to_do(shape):
    _, kernel, bias = make()
    inputs = [torch.zeros(shape, device="cuda", requires_grad=True), kernel, bias]
    output, *gradients = run(inputs)
    assert output.shape == shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def test_memory_layouts():
    inputs = make()
    expected = run(inputs)
    x, kernel, bias = (t.detach() for t in inputs)
    memory = torch.empty(x.numel() + 1, device="cuda")  # contiguous, but not on a multiple of 16 bytes
    shifted = memory[1:].view(2, 17, 31, 64).permute(0, 3, 1, 2).copy_(x)
    strided = kernel.repeat_interleave(2, dim=-1)[..., ::2], bias.repeat_interleave(2)[::2]
    for other in (
        (x.contiguous(), kernel, bias),
        (x.transpose(2, 3).contiguous().transpose(2, 3), kernel, bias),
        (shifted, kernel, bias),
        (x, *strided),
    ):
        for a, e in zip(run([t.requires_grad_() for t in other]), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free memory")
    _, kernel, bias = (t.detach() for t in make(channels=256))
    x = torch.randn(3, 1700, 1800, 256, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn_like(x)
    assert x.numel() > 2**31
    assert torch.equal(module.gated_conv(x, kernel, bias)[2:], module.gated_conv(x[2:], kernel, bias))
    whole = module.gated_conv_backward(grad, x, kernel, bias)[0][2:].clone()
    assert torch.equal(whole, module.gated_conv_backward(grad[2:], x[2:], kernel, bias)[0])


def test_operator_obeys_the_rules_of_torch_library():
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        x, kernel, bias = make((9, 14), dtype=dtype)
        x = x.detach().permute(0, 2, 3, 1).requires_grad_()
        torch.library.opcheck(module.gated_conv, (x, kernel, bias), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break(autocast):
    inputs = make()
    compiled = torch.compile(gated_conv, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
            assert a.dtype == e.dtype
            assert relative(a, e) < 1e-6


def test_captures_into_a_graph():
    inputs = make((40, 64))
    weight = torch.randn_like(inputs[0])

    def step():
        output = gated_conv(*inputs)
        return output, *torch.autograd.grad(output, inputs, weight)

    step()  # compiles the kernels, which capturing does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            inputs[0].mul_(scale)
            for tensor in captured:
                tensor.zero_()
        expected = step()
        graph.replay()
        for a, e in zip(captured, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_runs_on_the_current_stream():
    inputs = [t.detach() for t in make((60, 80))]
    expected = gated_conv(*inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
        inputs[0].mul_(2)
        inputs[0].mul_(0.5)
        actual = gated_conv(*inputs)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    inputs = make(device="cuda:1")
    assert torch.cuda.current_device() == 0
    check(inputs)
    assert torch.cuda.current_device() == 0


def test_what_the_kernels_do_not_take_runs_in_torch():
    inputs = [t.detach().double().requires_grad_() for t in make((9, 14))]
    with use_backend("auto"):
        assert gated_conv(*inputs).dtype == torch.float64
    with pytest.raises(ConfigError, match="float64"):
        gated_conv(*inputs)


def test_second_derivatives_are_refused():
    inputs = make()
    (gradient,) = torch.autograd.grad(gated_conv(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
