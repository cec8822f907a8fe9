"""The gated convolution in Triton against the torch path in float64."""

import pytest
import torch

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.ops import gated_conv
from sa2depth.ops.gated_conv import triton as module
from sa2depth.ops.gated_conv.torch import run as gated_conv_torch

NAMES = ("output", "input", "kernel", "bias")
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Largest error, as a share of the norm: the input's gradient is rounded in two parts, and as their sum."""


def slack(tensor):
    """By what the interpreter's errors may be larger: it cuts off what bfloat16 has no room for."""
    return 2 if tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" else 1


@pytest.fixture
def make(device):
    """x channels last, kernel, bias; kernel and bias float32."""

    def make(size=(2, 5), batch=1, channels=8, dtype=torch.float32, scale=0.5):
        random = torch.Generator(device).manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=random, device=device)

        x = draw(batch, channels, *size).to(dtype).to(memory_format=torch.channels_last)
        return [t.requires_grad_() for t in (x, scale * draw(channels, 4, 3, 3), scale * draw(channels))]

    return make


def run(inputs, function=gated_conv):
    """Output and gradients for a weighting that depends on nothing but the shape."""
    output = function(*inputs)
    random = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=random, device=output.device)
    return output, *torch.autograd.grad(output, inputs, weight.bfloat16().to(output.dtype))


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=None):
    actual = run(inputs)
    expected = run([t.detach().double().requires_grad_() for t in inputs], gated_conv_torch)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < slack(inputs[0]) * (tolerance or ROUNDING[inputs[0].dtype]), errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


def equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (3, 6)])
def test_sizes(make, size):
    check(make(size, batch=2))


@pytest.mark.parametrize("channels", [4, 36])
def test_channels(make, channels):
    check(make((2, 3), channels=channels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make, dtype):
    check(make((3, 4), channels=12, dtype=dtype))


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("scale", [1e-3, 4.0])
def test_gates_that_are_nearly_closed_or_open(make, dtype, scale):
    inputs = [t.detach() for t in make((3, 4), dtype=dtype, scale=scale)]
    output, expected = gated_conv(*inputs), gated_conv_torch(*(t.double() for t in inputs))
    # element by element: the rounding of the output, and that of tanh
    share = {torch.float32: 1e-5, torch.bfloat16: 2**-8 + 2**-11, torch.float16: 2**-11 + 2**-13}[dtype]
    torch.testing.assert_close(
        output.double(), expected, rtol=share * slack(output), atol=2e-6 * max(scale, 1)
    )


@pytest.mark.parametrize(("rows", "held"), [(1, 1), (2, 40), (3, 2), (5, 3)])
def test_any_way_to_cut_the_map(make, monkeypatch, rows, held):
    monkeypatch.setattr(module, "_rows_of_segment", lambda *_: rows)
    monkeypatch.setattr(module, "_programs_held", lambda device: held)
    check(make((5, 5), channels=4))


@pytest.mark.parametrize("height", [1, 15, 120, 121])
def test_segments_are_never_empty(height):
    for strips, held in ((1, 1056), (320, 33), (2560, 1056), (10240, 1056)):
        rows = module._rows_of_segment(strips, height, held)
        assert 1 <= rows <= height
        assert -(-height // rows) <= module._MOST_SEGMENTS


def test_always_the_same_bits(make):
    inputs = make()
    equal(run(inputs), run(inputs))


def test_layouts(make, device):
    inputs = make((2, 3))
    expected = run(inputs)
    x, kernel, bias = (t.detach() for t in inputs)
    memory = torch.zeros(x.numel() + 1, device=device)  # contiguous, but not on a multiple of 16 bytes
    shifted = memory[1:].view(1, 2, 3, 8).permute(0, 3, 1, 2).copy_(x)
    strided = kernel.repeat_interleave(2, dim=-1)[..., ::2], bias.repeat_interleave(2)[::2]
    for other in (
        (x.contiguous(), kernel, bias),
        (x.transpose(2, 3).contiguous().transpose(2, 3), *strided),
        (shifted, kernel, bias),
    ):
        equal(run([t.requires_grad_() for t in other]), expected)


def test_channels_last_is_not_copied(make, monkeypatch):
    x, kernel, bias = (t.detach() for t in make())
    seen = []
    monkeypatch.setattr(module, "_convolve", lambda kind, x, *_: seen.append(x.data_ptr()))
    gated_conv(x, kernel, bias)
    assert seen == [x.data_ptr()]


@pytest.mark.parametrize("shape", [(0, 8, 5, 6), (2, 8, 0, 6)])
def test_nothing_to_do(make, device, shape):
    _, kernel, bias = make()
    inputs = [torch.zeros(shape, device=device, requires_grad=True), kernel, bias]
    output, *gradients = run(inputs)
    assert output.shape == shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def test_what_is_not_finite_stays_where_it_is(make):
    x, kernel, bias = (t.detach() for t in make((3, 6), batch=2))
    expected = gated_conv(x, kernel, bias)
    x[0, 1, 1, 5] = torch.nan  # in the last column of the first image
    actual = gated_conv(x, kernel, bias)
    touched = torch.zeros_like(x, dtype=torch.bool)
    touched[0, :4, :, 4:] = True
    assert actual[touched].isnan().all()
    torch.testing.assert_close(actual[~touched], expected[~touched], rtol=0, atol=0)


def test_autocast_converts_x_and_nothing_else(make, device):
    x, kernel, bias = make((2, 3))
    with torch.autocast(device.type, torch.bfloat16):
        inside = run((x, kernel, bias))
    assert inside[0].dtype == torch.bfloat16
    assert [g.dtype for g in inside[1:]] == [torch.float32] * 3
    narrow = [x.detach().bfloat16().requires_grad_(), kernel, bias]
    equal([t.float() for t in inside], [t.float() for t in run(narrow)])


def test_kernel_and_bias_of_another_type(make):
    x, kernel, bias = make(dtype=torch.bfloat16)
    check([x, *(t.detach().bfloat16().requires_grad_() for t in (kernel, bias))], tolerance=2**-8)


def test_only_the_gradients_that_are_wanted(make):
    x, kernel, bias = make((2, 3))
    expected = torch.autograd.grad(gated_conv(x, kernel, bias).sum(), [kernel])
    output = gated_conv(x.detach(), kernel, bias.detach())
    equal(torch.autograd.grad(output.sum(), [kernel]), expected)
    with torch.no_grad():
        equal([gated_conv(x, kernel, bias)], [output])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_obeys_the_rules_of_torch_library(make, dtype):
    x, kernel, bias = make((1, 3), channels=4, dtype=dtype)
    x = x.detach().permute(0, 2, 3, 1).requires_grad_()
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.library.opcheck(module.gated_conv, (x, kernel, bias), **tolerance)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break(make, device, autocast):
    inputs = make((2, 3))
    compiled = torch.compile(gated_conv, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        equal(run(inputs, compiled), run(inputs))


def test_second_derivatives_are_refused(make):
    inputs = make((1, 2), channels=4)
    (gradient,) = torch.autograd.grad(gated_conv(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative on the back end triton"):
        gradient.sum().backward()


def test_what_the_kernels_do_not_take(make):
    x, kernel, bias = (t.detach() for t in make())
    with pytest.raises(ConfigError, match=r"the input is torch\.float64"):
        gated_conv(x.double(), kernel, bias)
    with pytest.raises(ConfigError, match=r"the kernel is torch\.float64"):
        gated_conv(x, kernel.double(), bias)
    with pytest.raises(ShapeError, match="multiple of 4"):
        gated_conv(x[:, :6], kernel, bias)
    wide = [torch.empty(shape, device="meta") for shape in ((2, 8, 1, 2**28), (8, 4, 3, 3), (8,))]
    assert "shape" in module.why_not(*wide)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(
    ("batch", "size", "channels"),
    [(8, (15, 20), 2048), (2, (30, 40), 1024), (1, (120, 160), 1024), (1, (11, 38), 5120), (2, (61, 79), 68)],
    ids=str,
)
def test_sizes_of_the_network(make, batch, size, channels, dtype):
    inputs = make(size, batch, channels, dtype, scale=0.3)
    check(inputs, 1e-5 if dtype == torch.float32 else None)
    equal(run(inputs), run(inputs))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(make):
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free memory")
    _, kernel, bias = (t.detach() for t in make(channels=256))
    x = torch.randn(3, 1700, 1800, 256, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn_like(x)
    assert x.numel() > 2**31
    assert torch.equal(module.gated_conv(x, kernel, bias)[2:], module.gated_conv(x[2:], kernel, bias))
    whole = module.gated_conv_backward(grad, x, kernel, bias)[0][2:].clone()
    assert torch.equal(whole, module.gated_conv_backward(grad[2:], x[2:], kernel, bias)[0])


@pytest.mark.gpu
def test_compiles_with_inductor_for_sizes_that_change(make):
    compiled = torch.compile(gated_conv, fullgraph=True, dynamic=True)
    for size in ((17, 31), (18, 30)):
        inputs = make(size, channels=64)
        for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
            assert relative(a, e) < 1e-6


@pytest.mark.gpu
def test_captures_into_a_graph(make):
    inputs = make((40, 64), channels=64)
    weight = torch.randn_like(inputs[0])

    def step():
        output = gated_conv(*inputs)
        return output, *torch.autograd.grad(output, inputs, weight)

    step()  # compiles the kernels, which capturing does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    expected = step()
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    equal(captured, expected)


@pytest.mark.gpu
def test_one_compilation_for_all_sizes(make):
    from sa2depth.ops.gated_conv import triton_kernels as kernels

    def compiled():
        return sum(
            len(kernel.device_caches[torch.cuda.current_device()][0])
            for kernel in (kernels.convolve, kernels.weight_gradients)
        )

    run(make((16, 16), channels=64))
    before = compiled()
    for size, batch in (((1, 1), 1), ((17, 31), 2), ((32, 48), 1)):
        run(make(size, batch, channels=68))
    assert compiled() == before
