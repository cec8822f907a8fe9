"""The CUDA kernels of depthwise convolution, run on the CPU by an emulator: the sources of csrc/, thread by thread."""

import importlib
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sa2depth.ops.depthwise_conv import cuda as module
from sa2depth.ops.runtime.nvrtc import compile_kernels
from sa2depth.resources import csrc_dir

NAMES = ("output", "input", "weight", "bias")


@pytest.fixture(autouse=True)
def emulated(emulate):
    """The launches of a test, which run on the CPU, with their macros and grids."""
    return emulate(module, note=lambda source, grid: (dict(source.macros), grid), alignment=16)


def make(size=(9, 11), batch=2, channels=16, kernel=3, bias=True, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x = draw(batch, channels, *size).to(dtype).to(memory_format=torch.channels_last)
    inputs = [x, draw(channels, 1, kernel, kernel).float(), draw(channels).float() if bias else None]
    return [t if t is None else t.requires_grad_() for t in inputs]


def run(inputs, function=module.run):
    """Output and gradients for a weighting that depends on nothing but the shape and the dtype of the output."""
    output = function(*inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [t for t in inputs if t is not None]
    return output, *torch.autograd.grad(output, leaves, weight.to(output.dtype))


def reference(inputs):
    """The same in float64, with the same weighting."""
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    x, weight, bias = exact
    output = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [t for t in exact if t is not None]
    return output, *torch.autograd.grad(output, leaves, grad.to(inputs[0].dtype).double())


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=1e-6):
    actual, expected = run(inputs), reference(inputs)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=False)}
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs if t is not None)]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual[:2])


@pytest.mark.parametrize("size", [(9, 11), (1, 1), (1, 47), (35, 2), (17, 40)])
@pytest.mark.parametrize("kernel", [3, 11])
def test_sizes(kernel, size):
    check(make(size, kernel=kernel))


@pytest.mark.parametrize("channels", [8, 16, 24, 32, 80])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11])
def test_channels_and_kernels(kernel, channels):
    check(make((6, 23), batch=1, channels=channels, kernel=kernel))


@pytest.mark.parametrize("kernel", [3, 11])
def test_channels_of_several_slabs(kernel):
    check(make((3, 5), batch=1, channels=264 if kernel == 3 else 64, kernel=kernel))


@pytest.mark.parametrize("kernel", [3, 7])
def test_without_bias(kernel):
    check(make(kernel=kernel, bias=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "channels"), [(3, 16), (5, 8), (11, 32)])
def test_half_precision(kernel, channels, dtype):
    # sums are float32: what is lost is one rounding of the output and of the input's gradient
    inputs = make((9, 22), channels=channels, kernel=kernel, dtype=dtype)
    actual, expected = run(inputs), reference(inputs)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, rtol=1.01 * rounding, atol=1e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 1e-6


def test_half_precision_parameters():
    inputs = make(kernel=5, dtype=torch.bfloat16)
    inputs[1:] = [t.detach().bfloat16().requires_grad_() for t in inputs[1:]]
    check(inputs, tolerance=4e-3)


@pytest.mark.parametrize("kernel", [3, 11])
def test_many_tiles_in_few_blocks(kernel, emulated, monkeypatch):
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    check(make((41, 70), batch=3, channels=16, kernel=kernel))
    grids = {name: grid for name, (_, grid) in emulated}
    assert grids["depthwise_conv_backward_weight" + "_3x3" * (kernel == 3)] == (2, 1, 1)


def test_rows_of_a_thread_follow_the_number_of_multiprocessors(emulated, monkeypatch):
    grids = []
    for multiprocessors in (1, 1000):
        monkeypatch.setattr(module, "multiprocessors", lambda device, count=multiprocessors: count)
        emulated.clear()
        check(make((40, 20), channels=32))
        grids.append(emulated[0][1][1])
    assert [grid[1] for grid in grids] == [1, 40]


def test_smaller_tiles_where_there_is_little_shared_memory(emulated, monkeypatch):
    check(make((30, 8), batch=1, channels=32, kernel=11))
    monkeypatch.setattr(module, "shared_bytes_limit", lambda device: 99 * 1024)
    check(make((30, 8), batch=1, channels=32, kernel=11))
    assert [grid[1] for name, (_, grid) in emulated if name.endswith("forward")] == [2, 2, 3, 3]


@pytest.mark.parametrize("kernel", [3, 11])
def test_threads_in_the_other_order(kernel, monkeypatch):
    inputs = make((19, 23), channels=16, kernel=kernel)
    expected = run(inputs)
    monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
    for a, e in zip(run(inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_what_is_not_finite_stays_where_it_belongs():
    for kernel in (3, 11):
        inputs = make((16, 50), batch=1, kernel=kernel)
        with torch.no_grad():
            inputs[0][0, 0, 8, 25] = torch.inf
            inputs[1][1, 0, 0, 0] = torch.inf
        output = module.run(*inputs)
        expected = F.conv2d(*inputs, padding=kernel // 2, groups=16)
        assert torch.equal(
            output.isfinite()[:, (0, *range(2, 16))], expected.isfinite()[:, (0, *range(2, 16))]
        )
        assert output[:, 2:].isfinite().all()


def test_three_launches_backwards(emulated):
    for kernel in (3, 11):
        emulated.clear()
        run(make(kernel=kernel))
        assert len(emulated) == 4


def test_layouts():
    inputs = make(kernel=5)
    expected = run(inputs)
    x, weight, bias = (t.detach() for t in inputs)
    strided = [
        t.contiguous().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for t in (x, weight, bias)
    ]
    moved = []
    for t in (x, weight, bias):  # contiguous, but not on a multiple of 16 bytes
        memory = torch.empty(t.numel() + 1)
        moved.append(memory[1:].view(t.shape).copy_(t).requires_grad_())
    first = [x.contiguous().requires_grad_(), *inputs[1:]]
    for other in (strided, moved, first):
        for a, e in zip(run(other), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_channels_last_is_not_copied(monkeypatch):
    seen = []
    operator = module.depthwise_conv
    monkeypatch.setattr(module, "depthwise_conv", lambda x, *others: seen.append(x) or operator(x, *others))
    inputs = make()
    module.run(*inputs)
    assert seen[0].data_ptr() == inputs[0].data_ptr()


def test_autocast_rounds_the_input_only(emulated):
    inputs = make()
    with torch.autocast("cpu", torch.bfloat16):
        output = module.run(*inputs)
    assert output.dtype == torch.bfloat16
    expected = module.run(inputs[0].bfloat16(), *inputs[1:])
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert all(g.dtype == torch.float32 for g in gradients)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"size": (0, 5)}], ids=str)
@pytest.mark.parametrize("kernel", [3, 11])
def test_nothing_to_do(kernel, sizes, emulated):
    inputs = make(kernel=kernel, **sizes)
    output, *gradients = run(inputs)
    assert not emulated
    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("wanted", "kernels"),
    [
        ((True, False, False), ["forward", "forward"]),
        ((False, True, False), ["forward", "backward_weight", "sum_chunks"]),
        ((False, False, True), ["forward", "backward_weight", "sum_chunks"]),
    ],
)
def test_gradients_that_nobody_wants_are_left_out(wanted, kernels, emulated):
    inputs = [t.detach().requires_grad_(wants) for t, wants in zip(make(kernel=5), wanted, strict=True)]
    leaf = next(t for t in inputs if t.requires_grad)
    output = module.run(*inputs)
    (gradient,) = torch.autograd.grad(output.sum(), [leaf])
    assert gradient.isfinite().all()
    assert [name.removeprefix("depthwise_conv_") for name, _ in emulated] == kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_operator_obeys_the_rules_of_torch_library(bias, dtype):
    for kernel in (3, 5):
        x, weight, shift = make((5, 6), kernel=kernel, bias=bias, dtype=dtype)
        pixels = x.detach().permute(0, 2, 3, 1).requires_grad_()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.library.opcheck(module.depthwise_conv, (pixels, weight, shift), atol=tolerance, rtol=tolerance)


def test_compiles_without_a_graph_break():
    inputs = make()
    compiled = torch.compile(module.run, fullgraph=True, backend="aot_eager")
    for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
        assert a.stride() == e.stride()


def test_second_derivatives_are_refused():
    inputs = make()
    (gradient,) = torch.autograd.grad(module.run(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def _meta(shape, kernel=3, dtype=torch.float32):
    x = torch.empty(shape, device="meta", dtype=dtype)
    return x, x.new_empty(shape[1], 1, kernel, kernel), x.new_empty(shape[1])


def test_why_not(monkeypatch):
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(module, "why_not_on", lambda *key: "")
    assert module.why_not(*_meta((2, 8, 5, 6))) == ""
    assert module.why_not(*_meta((8, 32, 4000, 5000))) == ""  # more than 2**31 elements
    assert "float64" in module.why_not(*_meta((2, 8, 5, 6), dtype=torch.float64))
    assert "12 channels" in module.why_not(*_meta((2, 12, 5, 6)))
    assert "not 13x13" in module.why_not(*_meta((2, 8, 5, 6), kernel=13))
    assert "shape" in module.why_not(*_meta((1, 256, 4000, 5000)))
    assert "shape" in module.why_not(*_meta((70000, 8, 4, 4)))
    monkeypatch.undo()
    assert "the input is on meta" in module.why_not(*_meta((2, 8, 5, 6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles_for_devices_with_all_numbers_in_registers(
    architecture, dtype, monkeypatch, tmp_path, caplog
):
    pytest.importorskip("cuda.core")
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"no NVRTC: {error}")
    sources = set()
    monkeypatch.setattr(module, "launch", lambda source, *_, **__: sources.add(source))
    for kernel in (3, 11):
        run(make((5, 6), channels=32, kernel=kernel, dtype=dtype))
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    caplog.set_level(logging.DEBUG, "sa2depth.ops.runtime.nvrtc.compiler")
    for source in sources:
        compile_kernels(csrc_dir() / source.path, architecture, dict(source.macros))
    assert re.findall(r"(\d+) bytes spill stores", caplog.text) == ["0"] * 5
