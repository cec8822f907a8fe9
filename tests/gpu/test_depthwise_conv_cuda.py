"""Depthwise convolution's kernels on a CUDA device, against the torch path in float64."""

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError
from sa2depth.ops import use_backend
from sa2depth.ops.depthwise_conv import cuda as module
from sa2depth.ops.depthwise_conv import depthwise_conv

pytestmark = pytest.mark.gpu

NAMES = ("output", "input", "weight", "bias")


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cuda"):
        yield


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(size=(17, 31), batch=2, channels=32, kernel=3, bias=True, dtype=torch.float32, device="cuda"):
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random, device=device)

    x = draw(batch, channels, *size).to(dtype).to(memory_format=torch.channels_last)
    inputs = [x, draw(channels, 1, kernel, kernel), draw(channels) if bias else None]
    return [t if t is None else t.requires_grad_() for t in inputs]


def run(inputs, function=depthwise_conv, narrow=None):
    """Output and gradients for a weighting that depends on nothing but the shape and the narrower dtype."""
    output = function(*inputs)
    random = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=random, device=output.device)
    weight = weight.to(narrow or output.dtype).to(output.dtype)
    return output, *torch.autograd.grad(output, [t for t in inputs if t is not None], weight)


def reference(inputs):
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    with use_backend("torch"):
        return run(exact, narrow=inputs[0].dtype)


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=2e-6):
    actual, expected = run(inputs), reference(inputs)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=False)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs if t is not None)]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual[:2])


@pytest.mark.parametrize("size", [(1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (61, 79)])
@pytest.mark.parametrize("kernel", [3, 11])
def test_forward_and_gradients(kernel, size):
    check(make(size, kernel=kernel))


@pytest.mark.parametrize("channels", [8, 24, 80, 160, 264])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11])
def test_channels_and_kernels(kernel, channels):
    check(make((19, 43), channels=channels, kernel=kernel))


@pytest.mark.parametrize("kernel", [3, 11])
@pytest.mark.parametrize(
    ("batch", "channels", "size"),
    [(8, 64, (120, 160)), (8, 512, (15, 20)), (1, 512, (15, 20)), (2, 160, (88, 304)), (8, 640, (11, 38))],
    ids=["T level 1", "T level 4", "T level 4, one image", "L level 1, KITTI", "S level 4, KITTI"],
)
def test_sizes_of_the_network(batch, channels, size, kernel):
    check(make(size, batch=batch, channels=channels, kernel=kernel), tolerance=5e-6)


def test_many_images():
    check(make((6, 7), batch=4000, channels=8), tolerance=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [3, 5, 11])
def test_half_precision(kernel, dtype):
    # sums are float32: what is lost is one rounding of the output and of the input's gradient
    inputs = make((40, 64), kernel=kernel, dtype=dtype)
    actual, expected = run(inputs), reference(inputs)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, rtol=1.02 * rounding, atol=3e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 2e-6


def test_without_bias():
    check(make(bias=False))
    check(make(bias=False, kernel=5))


@pytest.mark.parametrize("kernel", [3, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_every_run(deterministic, dtype, kernel):  # which also fills new memory with NaN
    inputs = make((60, 80), batch=4, kernel=kernel, dtype=dtype)
    first, second = run(inputs), run(inputs)
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [3, 11])
def test_autocast_rounds_the_input_only(kernel):
    inputs = make(kernel=kernel)
    with torch.autocast("cuda", torch.bfloat16):
        output = depthwise_conv(*inputs)
        conv2d = F.conv2d(*inputs, padding=kernel // 2, groups=32)
    assert output.dtype == conv2d.dtype == torch.bfloat16
    assert relative(output, conv2d) < 1e-2
    expected = depthwise_conv(inputs[0].bfloat16(), *inputs[1:])
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(output.sum(), inputs))


@pytest.mark.parametrize("kernel", [3, 11])
def test_nothing_to_do(kernel):
    inputs = make(kernel=kernel, batch=0)
    output, *gradients = run(inputs)
    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("kernel", [3, 11])
def test_memory_layouts(kernel):
    inputs = make(kernel=kernel)
    expected = run(inputs)
    x, *parameters = (t.detach() for t in inputs)
    shifted = torch.empty(x.numel() + 1, device="cuda")[1:]  # not on a multiple of 16 bytes
    shifted = shifted.view(x.permute(0, 2, 3, 1).shape).copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    for other in (x.contiguous(), shifted, strided):
        actual = run([t.detach().requires_grad_() for t in (other, *parameters)])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [3, 11])
def test_more_than_2_to_the_31_elements(kernel):
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free memory")
    x = torch.randn(5, 2048, 4100, 64, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    weight = torch.randn(64, 1, kernel, kernel, device="cuda")
    output = module.depthwise_conv(x, weight, None)
    assert torch.equal(output[4:], module.depthwise_conv(x[4:], weight, None))
    del output
    grad = torch.zeros_like(x)
    grad[4] = torch.randn_like(grad[4])
    whole = module.depthwise_conv_backward(grad, x, weight, True, True, True)
    part = module.depthwise_conv_backward(grad[4:], x[4:], weight, True, True, True)
    assert torch.equal(whole[0][4:], part[0])
    assert relative(whole[1], part[1]) < 1e-4
    assert relative(whole[2], part[2]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_obeys_the_rules_of_torch_library(dtype):
    for kernel in (3, 5):
        x, weight, bias = make((9, 14), kernel=kernel, dtype=dtype)
        pixels = x.detach().permute(0, 2, 3, 1).requires_grad_()
        tolerance = 1e-4 if dtype == torch.float32 else 1e-2
        torch.library.opcheck(module.depthwise_conv, (pixels, weight, bias), atol=tolerance, rtol=tolerance)


def test_compiles_without_a_graph_break():
    inputs = make()
    compiled = torch.compile(depthwise_conv, fullgraph=True)
    for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [3, 11])
def test_captures_into_a_graph(kernel):
    inputs = make((40, 64), kernel=kernel)
    weight = torch.randn_like(inputs[0])

    def step():
        output = depthwise_conv(*inputs)
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
    expected = depthwise_conv(*inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
        inputs[0].mul_(2)
        inputs[0].mul_(0.5)
        actual = depthwise_conv(*inputs)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    assert torch.cuda.current_device() == 0
    check(make(device="cuda:1"))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [({"kernel": 13}, "13x13"), ({"channels": 12}, "12 channels"), ({"dtype": torch.float64}, "float64")],
    ids=["kernel", "channels", "dtype"],
)
def test_what_the_kernels_do_not_take_runs_in_torch(sizes, reason):
    inputs = make((9, 14), **sizes)
    if sizes.get("dtype"):
        inputs[1:] = [t.detach().double().requires_grad_() for t in inputs[1:]]
    with use_backend("auto"):
        for a, e in zip(run(inputs), reference(inputs), strict=True):
            assert relative(a, e) < 2e-3  # cuDNN may take TF32
    with pytest.raises(ConfigError, match=reason):
        depthwise_conv(*inputs)


def test_second_derivatives_are_refused():
    inputs = make()
    (gradient,) = torch.autograd.grad(depthwise_conv(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
