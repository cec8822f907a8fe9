"""Layer normalisation in Triton, against the torch path in float64."""

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError
from sa2depth.ops import use_backend
from sa2depth.ops.layer_norm import layer_norm
from sa2depth.ops.layer_norm import triton as module
from sa2depth.ops.runtime.triton import interpreted

NAMES = ("output", "input", "weight", "bias")
ROUNDING = {
    torch.bfloat16: 2**-7 if interpreted() else 2**-8,
    torch.float16: 2**-11,
}  # interpreted, it truncates
EPS = 1e-5


def make(device, shape=(2, 7, 64), dtype=torch.float32, shift=0.5):
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    inputs = [(draw(*shape) + shift).to(device, dtype), *(draw(shape[-1]).to(device) for _ in range(2))]
    return [t.requires_grad_() for t in inputs]


def run(inputs, function=layer_norm, narrow=None, **options):
    """Output and gradients for a weighting that depends on nothing but the shape and the narrower dtype."""
    output = function(*inputs, **options)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    weight = weight.to(narrow or output.dtype).to(output.device, output.dtype)
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
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


def check_rounded(actual, expected):
    """Arithmetic is float32: what is lost is one rounding, of the output and of the input's gradient."""
    for a, e in zip(actual[:2], expected[:2], strict=True):
        rounding = ROUNDING.get(a.dtype, 2e-6)
        torch.testing.assert_close(a.double(), e, rtol=1.02 * rounding, atol=3e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 2e-6


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that a test launches."""
    from sa2depth.ops.layer_norm import triton_kernels as kernels

    launched = []

    class Noted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid):
            launched.append(self.name)
            return self.kernel[grid]

    for name in ("forward", "backward", "sum_parts"):
        monkeypatch.setattr(kernels, name, Noted(name))
    return launched


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("channels", [3, 13, 40, 64, 80, 250, 512, 1280])
def test_channels(channels, gelu, device):
    check(make(device, (11 if channels < 256 else 3, channels)), gelu=gelu)


def test_the_widest_rows(device):
    check(make(device, (2, 8192)))


@pytest.mark.parametrize("rows", [1, 15, 65, 700])
@pytest.mark.parametrize("channels", [32, 80])
def test_rows(channels, rows, device, monkeypatch):
    monkeypatch.setattr(
        module, "multiprocessors", lambda device: 1
    )  # several steps, for some programs one less
    check(make(device, (rows, channels)))


def test_more_programs_than_are_summed_at_once(device, monkeypatch):
    monkeypatch.setattr(module, "_SUM_PARTS", 4)
    check(make(device, (300, 64)))
    assert module._programs(300, 16, 8, device) > 4


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_have_room_for_rows_and_not_much_to_spare(itemsize):
    for channels in range(16, 8193):
        for rows, chunks, block, warps in (
            module._forward_tile(channels, itemsize),
            module._backward_tile(channels, itemsize),
        ):
            assert channels <= chunks * block < max(32, 1.26 * channels + 16)
            assert rows * chunks * block <= 32 * warps * module._FORWARD_VALUES
            assert 4 <= warps <= 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("channels", [40, 256, 1280])
def test_half_precision(channels, gelu, dtype, device):
    inputs = make(device, (3, channels), dtype)
    check_rounded(run(inputs, gelu=gelu), reference(inputs, gelu=gelu))


def test_half_precision_parameters(device):
    inputs = make(device, dtype=torch.bfloat16)
    inputs[1:] = [t.detach().bfloat16().requires_grad_() for t in inputs[1:]]
    check(inputs, tolerance=4e-3)


@pytest.mark.parametrize("channels", [64, 80])
def test_a_large_mean_does_not_cancel(channels, device):
    inputs = make(device, (9, channels), shift=1000.0)
    assert relative(run(inputs)[0], reference(inputs)[0]) < 1e-4  # torch's own float32 is as far off
    with torch.no_grad():
        inputs[0].fill_(3.25)
        # the last digit of the mean, 2.4e-7, divided by the square root of eps
        torch.testing.assert_close(layer_norm(*inputs), inputs[2].expand_as(inputs[0]), rtol=0, atol=3e-4)


def test_gelu_far_from_zero(device):
    x = torch.linspace(-6, 6, 2000, device=device).view(1, -1)
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    deviation = x.std(correction=0).item()
    actual = layer_norm(x, weight * deviation, bias, 1e-9, gelu=True)
    torch.testing.assert_close(actual.double(), F.gelu(x.double()), rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_stays_in_its_row(device):
    inputs = make(device, (40, 80))
    with torch.no_grad():
        inputs[0][7, 3] = torch.inf
        inputs[0][9, 79] = torch.nan
    output, grad_x, *_ = run(inputs)
    bad = torch.zeros(40, dtype=torch.bool, device=device)
    bad[[7, 9]] = True
    for tensor in (output, grad_x):
        assert torch.equal(tensor.isfinite().all(dim=1), ~bad)


def test_layouts(device):
    inputs = make(device, (2, 6, 5, 64))
    expected = run(inputs)
    x, *parameters = (t.detach() for t in inputs)
    shifted = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)  # not on a multiple of 16 bytes
    pitched = F.pad(x, (8, 56))[..., 8:72]
    oddly_pitched = F.pad(x, (0, 1))[..., :64]
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    channels_first = x.movedim(-1, 1).contiguous().movedim(1, -1)
    for other in (shifted, pitched, oddly_pitched, strided, channels_first):
        actual = run([t.detach().requires_grad_() for t in (other, *parameters)])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)
    parameters = [t.repeat_interleave(2)[::2].requires_grad_() for t in parameters]
    for a, e in zip(run([inputs[0], *parameters]), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_one_row_and_one_gradient_in_many_places(device):
    x, weight, bias = make(device, (1, 64))
    gradients = torch.autograd.grad(layer_norm(x.expand(9, 64), weight, bias).sum(), (weight, bias))
    with use_backend("torch"):
        expected = torch.autograd.grad(layer_norm(x.expand(9, 64), weight, bias).sum(), (weight, bias))
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
def test_autocast_writes_its_dtype(gelu, dtype, device):
    inputs = make(device, (9, 80), dtype)
    with torch.autocast(device.type, torch.bfloat16):
        actual = run(inputs, gelu=gelu)
        with torch.no_grad():
            assert torch.equal(layer_norm(*inputs, gelu=gelu), actual[0])
    assert [t.dtype for t in actual] == [torch.bfloat16, *(t.dtype for t in inputs)]
    check_rounded(actual, reference(inputs, torch.bfloat16, gelu=gelu))
    with torch.autocast(device.type, torch.bfloat16), torch.autocast(device.type, enabled=False):
        assert layer_norm(*inputs).dtype == dtype


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_nothing_to_do(shape, launches, device):
    inputs = make(device, shape)
    output, *gradients = run(inputs)
    assert not launches
    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ((True, False, False), ["forward", "backward"]),
        ((False, True, False), ["forward", "backward", "sum_parts"]),
        ((False, False, True), ["forward", "backward", "sum_parts"]),
    ],
)
def test_gradients_that_nobody_wants_are_left_out(wanted, names, launches, device):
    inputs = [t.detach().requires_grad_(wants) for t, wants in zip(make(device), wanted, strict=True)]
    leaf = next(t for t in inputs if t.requires_grad)
    (gradient,) = torch.autograd.grad(layer_norm(*inputs).square().sum(), [leaf])
    assert launches == names
    everything = torch.autograd.grad(layer_norm(*(every := make(device))).square().sum(), every)
    torch.testing.assert_close(gradient, everything[wanted.index(True)], rtol=1e-4, atol=1e-5)


def test_statistics_are_kept_for_gradients_only(monkeypatch, device):
    kept = []

    def note(function):
        return lambda *arguments: kept.append(function(*arguments)) or kept[-1]

    operator = module.layer_norm
    for name in ("layer_norm", "_normalise"):  # with the dispatcher and without
        monkeypatch.setattr(module, name, note(getattr(module, name)))
    inputs = make(device, (3, 64))
    outputs = [layer_norm(*inputs)]
    with torch.no_grad():
        outputs.append(layer_norm(*inputs))
    outputs.append(layer_norm(*(t.detach() for t in inputs)))
    assert [tuple(statistics.shape) for _, statistics in kept] == [(3, 2), (0,), (0,)]
    assert [output.requires_grad for output in outputs] == [True, False, False]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    output, _ = operator(*inputs, EPS, False, torch.float32, False)
    with pytest.raises(RuntimeError, match="no backward pass"):
        output.sum().backward()


@pytest.mark.parametrize(("gelu", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_operator_obeys_the_rules_of_torch_library(gelu, dtype, device):
    x, weight, bias = make(device, (5, 40), dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    arguments = (x, weight, bias, EPS, gelu, dtype, True)
    torch.library.opcheck(module.layer_norm, arguments, atol=tolerance, rtol=tolerance)


def test_compiles_without_a_graph_break(device):
    inputs = make(device)
    for function in (layer_norm, lambda *t: module.run(*t, EPS, False)):  # the first is torch's
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_a_trace_sees_the_operator(device):
    x, weight, bias = (t.detach() for t in make(device))
    traced = torch.jit.trace(lambda x: layer_norm(x, weight, bias), x, check_trace=False)
    assert "layer_norm_triton" in str(traced.graph)


def test_second_derivatives_are_refused(device):
    inputs = make(device)
    (gradient,) = torch.autograd.grad(layer_norm(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative on the back end triton"):
        gradient.sum().backward()


def _of_shape(shape, device, dtype=torch.float32):
    x = torch.zeros((), device=device, dtype=dtype).expand(shape)
    return x, x.new_zeros(()).expand(shape[-1]), x.new_zeros(()).expand(shape[-1])


def test_what_the_kernels_do_not_take(device):
    with pytest.raises(ConfigError, match="float64"):
        layer_norm(*_of_shape((2, 8), device, torch.float64))
    for channels in (0, 8193):
        with pytest.raises(ConfigError, match=f"there are {channels} channels"):
            layer_norm(*_of_shape((2, channels), device))
    with pytest.raises(ConfigError, match="shape"):
        layer_norm(*_of_shape((2**31, 8), device))
    assert module.why_not(*_of_shape((8, 4000, 5000, 64), device)) == ""  # more than 2**31 elements


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 80, 128, 256, 512, 1280])
def test_sizes_of_the_network(channels, dtype, device):
    inputs = make(device, (8 * 120 * 160 * 64**2 // channels**2, channels), dtype)  # 8 images, level by level
    actual, expected = run(inputs), reference(inputs)
    limit = 5e-6 if dtype == torch.float32 else ROUNDING[dtype]
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert relative(a, e) < limit, name
    for a, again in zip(actual, run(inputs), strict=True):
        assert torch.equal(a, again)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(device):
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GiB of free memory")
    x = torch.randn(34_000_000, 64, device=device, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    weight, bias = torch.randn(2, 64, device=device)
    options = (EPS, False, torch.bfloat16, True)
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


@pytest.mark.gpu
def test_captures_into_a_graph(device):
    inputs = make(device)
    run(inputs)  # compiles the kernels, which capturing does not allow
    weight, graph = torch.randn_like(inputs[0]), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer_norm(*inputs)
        captured = output, *torch.autograd.grad(output, inputs, weight)
    with torch.no_grad():
        inputs[0].mul_(0.5).add_(0.1)
    graph.replay()
    output = layer_norm(*inputs)
    for a, e in zip(captured, (output, *torch.autograd.grad(output, inputs, weight)), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
