"""Depthwise convolution in Triton against the torch path in float64."""

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError
from sa2depth.ops import depthwise_conv
from sa2depth.ops.depthwise_conv import triton as module
from sa2depth.ops.depthwise_conv.torch import run as depthwise_conv_torch
from sa2depth.ops.runtime import triton as machine

NAMES = ("output", "input", "weight", "bias")


@pytest.fixture
def make(device):
    """x channels last, weight, and bias or None."""

    def make(size=(4, 9), batch=1, channels=16, kernel=3, bias=True, dtype=torch.float32):
        random = torch.Generator(device).manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=random, device=device)

        x = draw(batch, channels, *size).to(dtype).to(memory_format=torch.channels_last)
        inputs = [x, draw(channels, 1, kernel, kernel), draw(channels) if bias else None]
        return [t if t is None else t.requires_grad_() for t in inputs]

    return make


def run(inputs, function=depthwise_conv, narrow=None):
    """Output and gradients for a weighting that depends on nothing but the shape and the narrower dtype."""
    output = function(*inputs)
    random = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=random, device=output.device)
    weight = weight.to(narrow or output.dtype).to(output.dtype)
    return output, *torch.autograd.grad(output, [t for t in inputs if t is not None], weight)


def reference(inputs):
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    return run(exact, depthwise_conv_torch, narrow=inputs[0].dtype)


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


def check_half(inputs):
    """Sums are float32: what is lost is one rounding of the output and of the input's gradient."""
    actual, expected = run(inputs), reference(inputs)
    dtype = inputs[0].dtype
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    if dtype == torch.bfloat16 and inputs[0].device.type == "cpu":
        rounding *= 2  # the interpreter cuts off what bfloat16 has no room for
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, rtol=1.02 * rounding, atol=3e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 2e-6


def equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 23), (35, 1), (5, 11)])
def test_sizes(make, size):
    check(make(size, batch=2))


@pytest.mark.parametrize(
    ("size", "kernel"), [((1, 1), 11), ((3, 22), 11), ((7, 9), 5), ((2, 5), 7), ((4, 3), 9)]
)
def test_larger_kernels(make, size, kernel):
    check(make(size, kernel=kernel))


@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (24, 3), (32, 5), (64, 3), (128, 3), (80, 5)])
def test_channels(make, channels, kernel):
    check(make((2, 3), channels=channels, kernel=kernel))


@pytest.mark.parametrize("kernel", [3, 5])
def test_without_bias(make, kernel):
    check(make((2, 3), kernel=kernel, bias=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "channels"), [(3, 16), (5, 20)])
def test_half_precision(make, kernel, channels, dtype):
    check_half(make((3, 11), channels=channels, kernel=kernel, dtype=dtype))


def test_half_precision_parameters(make):
    inputs = make((3, 4), dtype=torch.bfloat16)
    inputs[1:] = [t.detach().bfloat16().requires_grad_() for t in inputs[1:]]
    check(inputs, tolerance=8e-3)


@pytest.mark.parametrize(
    ("kernel", "size", "rows"), [(3, (5, 19), 2), (3, (3, 130), 3), (5, (5, 17), 3), (7, (4, 9), 3)]
)
def test_many_tiles_in_few_programs(make, monkeypatch, kernel, size, rows):
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(module, "_WEIGHT_PROGRAMS", 1)
    monkeypatch.setattr(module, "rows_of_least_time", lambda *_: rows)
    check(make(size, kernel=kernel))


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_same_bits_in_every_run(make, kernel):
    inputs = make((3, 12), kernel=kernel, dtype=torch.bfloat16)
    equal(run(inputs), run(inputs))


def test_memory_layouts(make, device):
    inputs = make()
    expected = run(inputs)
    x, weight, bias = (t.detach() for t in inputs)
    pixels = x.permute(0, 2, 3, 1)
    shifted = torch.zeros(x.numel() + 1, device=device)[1:]  # not on a multiple of 16 bytes
    shifted = shifted.view(pixels.shape).copy_(pixels).permute(0, 3, 1, 2)
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    doubled = weight.repeat_interleave(2, dim=-1)[..., ::2], bias.repeat_interleave(2)[::2]
    for other in ((x.contiguous(), weight, bias), (shifted, weight, bias), (strided, *doubled)):
        equal(run([t.requires_grad_() for t in other]), expected)


@pytest.mark.parametrize("size", [{"batch": 0}, {"size": (0, 5)}], ids=str)
def test_nothing_to_do(make, size):
    inputs = make(**size)
    output, *gradients = run(inputs)
    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def test_autocast_rounds_the_input_only(make, device):
    inputs = make(kernel=5)
    with torch.autocast(device.type, torch.bfloat16):
        output = depthwise_conv(*inputs)
        conv2d = F.conv2d(*inputs, padding=2, groups=16)
    assert output.dtype == conv2d.dtype == torch.bfloat16
    assert relative(output, conv2d) < 2e-2
    equal([output], [depthwise_conv(inputs[0].bfloat16(), *inputs[1:])])
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(output.sum(), inputs))


def test_autocast_to_a_dtype_that_the_device_lacks(make, device, monkeypatch):
    inputs = make((1, 1))
    monkeypatch.setattr(machine, "_why_not_on", lambda *a: "there is no bfloat16" if a[-1] else "")
    depthwise_conv(*inputs)
    with torch.autocast(device.type, torch.bfloat16), pytest.raises(ConfigError, match="no bfloat16"):
        depthwise_conv(*inputs)


@pytest.mark.parametrize("wanted", range(3))
def test_gradients_that_nobody_wants_are_left_out(make, monkeypatch, wanted):
    inputs = make((2, 3))
    expected = run(inputs)[1 + wanted]
    for n, tensor in enumerate(inputs):
        tensor.requires_grad_(n == wanted)
    left_out = ("_weight_parts", "_sum_chunks") if wanted == 0 else ("_convolve",)
    output = depthwise_conv(*inputs)
    for name in left_out:
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    weight = torch.randn(
        output.shape, generator=torch.Generator(output.device).manual_seed(1), device=output.device
    )
    equal(torch.autograd.grad(output, inputs[wanted], weight), [expected])


def test_needs_no_gradient(make):
    with torch.no_grad():
        output = depthwise_conv(*make((2, 3)))
    assert not output.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_operator_obeys_the_rules_of_torch_library(make, bias):
    x, weight, shift = make((2, 3), bias=bias)
    pixels = x.detach().permute(0, 2, 3, 1).requires_grad_()
    torch.library.opcheck(module.depthwise_conv, (pixels, weight, shift), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break(make, device, autocast):
    inputs = make((2, 3), batch=2)
    compiled = torch.compile(depthwise_conv, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        actual, expected = run(inputs, compiled), run(inputs)
    equal(actual, expected)
    assert [t.stride() for t in actual] == [t.stride() for t in expected]


def test_second_derivatives_are_refused(make):
    inputs = make((2, 3))
    (gradient,) = torch.autograd.grad(depthwise_conv(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative on the back end triton"):
        gradient.sum().backward()


def test_what_the_kernels_do_not_take(make):
    inputs = make((2, 3))
    with pytest.raises(ConfigError, match="float64"):
        depthwise_conv(*(t.double() for t in inputs))
    with pytest.raises(ConfigError, match="not 13x13"):
        depthwise_conv(*make((2, 3), kernel=13))
    weight = torch.empty(256, 1, 3, 3, device="meta")
    assert "on meta" in module.why_not(weight.new_empty(1, 256, 4, 5), weight, None)
    assert "shape" in module.why_not(weight.new_empty(1, 256, 4000, 5000), weight, None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [3, 11])
@pytest.mark.parametrize(
    ("batch", "channels", "size"),
    [
        (8, 32, (120, 160)),
        (8, 64, (60, 80)),
        (8, 128, (30, 40)),
        (8, 256, (15, 20)),
        (8, 512, (15, 20)),
        (1, 512, (15, 20)),
        (2, 160, (88, 304)),
        (8, 640, (11, 38)),
        (1, 1280, (11, 38)),
    ],
    ids=str,
)
def test_sizes_of_the_network(make, batch, channels, size, kernel, dtype):
    inputs = make(size, batch=batch, channels=channels, kernel=kernel, dtype=dtype)
    if dtype == torch.float32:
        check(inputs, tolerance=5e-6)
        return
    actual, expected = run(inputs), reference(inputs)
    errors = [relative(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors[:2]) < {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert max(errors[2:]) < 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [8, 24, 80, 160, 264])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11])
def test_all_kernels_and_odd_channels(make, kernel, channels):
    check(make((19, 43), batch=2, channels=channels, kernel=kernel))


@pytest.mark.gpu
def test_many_images(make):
    check(make((6, 7), batch=70000, channels=8), tolerance=5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [3, 11])
def test_the_same_bits_in_every_run_at_full_size(make, kernel):
    inputs = make((60, 80), batch=4, channels=64, kernel=kernel, dtype=torch.bfloat16)
    equal(run(inputs), run(inputs))


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_compiles_with_inductor_for_sizes_that_change(make):
    compiled = torch.compile(depthwise_conv, fullgraph=True, dynamic=True)
    for size in ((17, 31), (18, 30)):
        inputs = make(size, batch=2, kernel=11)
        for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
            assert relative(a, e) < 1e-6


@pytest.mark.gpu
def test_few_compilations_for_all_sizes(make):
    from sa2depth.ops.depthwise_conv import triton_kernels as kernels

    def compiled(kernel):
        return len(kernel.device_caches[torch.cuda.current_device()][0])

    before = [compiled(kernel) for kernel in (kernels.convolve, kernels.weight_gradient)]
    for batch, size in ((1, (16, 16)), (1, (17, 1)), (2, (9, 31)), (16, (120, 160)), (3, (121, 163))):
        run(make(size, batch=batch, channels=48, kernel=7))
    after = [compiled(kernel) for kernel in (kernels.convolve, kernels.weight_gradient)]
    assert after[0] - before[0] <= 2 * 2 * 2  # strips, directions, heights below 32 and above
    assert after[1] - before[1] == 1


@pytest.mark.gpu
def test_captures_into_a_graph(make):
    inputs = make((40, 64), channels=32, kernel=11)
    weight = torch.randn_like(inputs[0])

    def step():
        output = depthwise_conv(*inputs)
        return output, *torch.autograd.grad(output, inputs, weight)

    step()  # compiles the kernels, which capturing does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs[0].mul_(0.5)
        for tensor in captured:
            tensor.zero_()
    expected = step()
    graph.replay()
    equal(captured, expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current(make):
    assert torch.cuda.current_device() == 0
    check([t.detach().to("cuda:1").requires_grad_() for t in make((17, 31))])
    assert torch.cuda.current_device() == 0
