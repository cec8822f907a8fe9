"""Layer normalisation's kernels on a CUDA device, against the torch path in float64."""

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError
from sa2depth.ops import use_backend
from sa2depth.ops.layer_norm import cuda as module
from sa2depth.ops.layer_norm import layer_norm

pytestmark = pytest.mark.gpu

NAMES = ("output", "input", "weight", "bias")
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cuda"):
        yield


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(shape=(2, 17, 31, 64), dtype=torch.float32, device="cuda", shift=0.5):
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random, device=device)

    inputs = [(draw(*shape) + shift).to(dtype), draw(shape[-1]), draw(shape[-1])]
    return [t.requires_grad_() for t in inputs]


def run(inputs, function=layer_norm, narrow=None, **options):
    """Output and gradients for a weighting that depends on nothing but the shape and the narrower dtype."""
    output = function(*inputs, **options)
    random = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=random, device=output.device)
    weight = weight.to(narrow or output.dtype).to(output.dtype)
    return output, *torch.autograd.grad(output, inputs, weight)


def reference(inputs, narrow=None, **options):
    exact = [t.detach().double().requires_grad_() for t in inputs]
    with use_backend("torch"):
        return run(exact, narrow=narrow or inputs[0].dtype, **options)


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=2e-6, **options):
    actual, expected = run(inputs, **options), reference(inputs, **options)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


def check_rounded(actual, expected):
    """Arithmetic is float32: what is lost is one rounding, of the output and of the input's gradient."""
    for a, e in zip(actual[:2], expected[:2], strict=True):
        rounding = ROUNDING.get(a.dtype, 2e-6)
        torch.testing.assert_close(a.double(), e, rtol=1.02 * rounding, atol=3e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 2e-6


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "channels", [8, 32, 40, 64, 80, 128, 160, 256, 320, 512, 640, 1000, 1024, 1280, 8192]
)
def test_channels(channels, gelu):
    check(make((3, 67, channels)), gelu=gelu)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000, 12345])
@pytest.mark.parametrize("channels", [32, 64, 240, 512])
def test_rows(channels, rows):
    check(make((rows, channels)), tolerance=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (8, 240, 320, 32),
        (8, 120, 160, 64),
        (8, 60, 80, 128),
        (8, 30, 40, 256),
        (8, 15, 20, 512),
        (8, 1200, 1024),
    ],
    ids=str,
)
def test_sizes_of_the_network(shape, dtype):
    inputs = make(shape, dtype)
    actual, expected = run(inputs), reference(inputs)
    limit = 5e-6 if dtype == torch.float32 else ROUNDING[dtype]
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert relative(a, e) < limit, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("channels", [32, 80, 256, 512, 1024, 1280])
def test_half_precision(channels, gelu, dtype):
    inputs = make((70, channels), dtype)
    check_rounded(run(inputs, gelu=gelu), reference(inputs, gelu=gelu))


def test_a_large_mean_does_not_cancel():
    inputs = make((999, 64), shift=1000.0)
    assert relative(run(inputs)[0], reference(inputs)[0]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_every_run(deterministic, dtype):  # which also fills new memory with NaN
    inputs = make((4, 60, 80, 64), dtype)
    first, second = run(inputs), run(inputs)
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_autocast_writes_its_dtype(gelu, dtype):
    inputs = make(dtype=dtype)
    with torch.autocast("cuda", torch.bfloat16):
        actual = run(inputs, gelu=gelu)
        with torch.no_grad():
            assert torch.equal(layer_norm(*inputs, gelu=gelu), actual[0])
    assert [t.dtype for t in actual] == [torch.bfloat16, *(t.dtype for t in inputs)]
    check_rounded(actual, reference(inputs, torch.bfloat16, gelu=gelu))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_nothing_to_do(shape):
    inputs = make(shape)
    output, *gradients = run(inputs)
    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def test_memory_layouts():
    inputs = make()
    expected = run(inputs)
    x, *parameters = (t.detach() for t in inputs)
    shifted = (
        torch.empty(x.numel() + 1, device="cuda")[1:].view(x.shape).copy_(x)
    )  # not on a multiple of 16 bytes
    pitched = F.pad(x, (8, 56))[..., 8:72]
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    channels_first = x.movedim(-1, 1).contiguous().movedim(1, -1)
    for other in (shifted, pitched, strided, channels_first):
        actual = run([t.detach().requires_grad_() for t in (other, *parameters)])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("stride", [(0, 64, 1), (64, 0, 1), (0, 0, 1), (1, 4, 0)], ids=str)
def test_one_element_in_many_places(stride):
    x, *parameters = make()
    inputs = [x.detach().as_strided((4, 9, 64), stride).requires_grad_(), *parameters]
    copied = [inputs[0].detach().clone(memory_format=torch.contiguous_format).requires_grad_(), *parameters]
    for a, e in zip(run(inputs), run(copied), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    (summed,) = torch.autograd.grad(layer_norm(*copied).sum(), copied[2:])  # a gradient of one element
    assert torch.equal(summed, torch.full_like(summed, 36))


def test_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GiB of free memory")
    x = torch.randn(34_000_000, 64, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    weight, bias = torch.randn(2, 64, device="cuda")
    options = (1e-5, False, torch.bfloat16, True)
    output, statistics = module.layer_norm(x, weight, bias, *options)
    few = module.layer_norm(x[-1000:], weight, bias, *options)
    assert torch.equal(output[-1000:], few[0])
    del output
    grad = torch.zeros_like(x)
    grad[-1000:] = torch.randn_like(grad[-1000:])
    whole = module.layer_norm_backward(grad, x, weight, bias, statistics, False, True)
    part = module.layer_norm_backward(grad[-1000:], x[-1000:], weight, bias, few[1], False, True)
    assert torch.equal(whole[0][-1000:], part[0])
    assert relative(whole[1], part[1]) < 1e-5
    assert relative(whole[2], part[2]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_operator_obeys_the_rules_of_torch_library(gelu, dtype):
    x, weight, bias = make((9, 80), dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    arguments = (x, weight, bias, 1e-5, gelu, dtype, True)
    torch.library.opcheck(module.layer_norm, arguments, atol=tolerance, rtol=tolerance)


def test_compiles_without_a_graph_break():
    inputs = make()
    compiled = torch.compile(layer_norm, fullgraph=True)
    for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_captures_into_a_graph(grad):
    inputs = make()
    weight = torch.randn_like(inputs[0])

    def step():
        if not grad:
            with torch.no_grad():
                return (layer_norm(*inputs),)
        output = layer_norm(*inputs)
        return output, *torch.autograd.grad(output, inputs, weight)

    step()  # compiles the kernels, which capturing does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            inputs[0].mul_(scale).add_(0.1)
            for tensor in captured:
                tensor.zero_()
        expected = step()
        graph.replay()
        for a, e in zip(captured, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_runs_on_the_current_stream():
    inputs = [t.detach() for t in make((60, 80, 64))]
    expected = layer_norm(*inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
        inputs[0].add_(1).sub_(1)
        actual = layer_norm(*inputs)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    assert torch.cuda.current_device() == 0
    check(make(device="cuda:1"))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(("shape", "dtype"), [((5, 12), torch.float32), ((5, 8), torch.float64)], ids=str)
def test_what_the_kernels_do_not_take_runs_in_torch(shape, dtype):
    inputs = [t.detach().to(dtype).requires_grad_() for t in make(shape)]
    with use_backend("auto"):
        for a, e in zip(run(inputs), reference(inputs), strict=True):
            assert relative(a, e) < 1e-5
    with pytest.raises(ConfigError, match=r"12 channels|float64"):
        layer_norm(*inputs)


def test_second_derivatives_are_refused():
    inputs = make()
    (gradient,) = torch.autograd.grad(layer_norm(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
