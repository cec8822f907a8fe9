"""The CUDA kernels of the gated convolution, run on the CPU by an emulator: the sources of csrc/, thread by thread."""

import importlib
import logging
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.ops import gated_conv, use_backend
from sa2depth.ops.gated_conv import cuda as module
from sa2depth.ops.gated_conv.torch import run as gated_conv_torch
from sa2depth.ops.runtime.nvrtc import compile_kernels
from sa2depth.resources import csrc_dir

NAMES = ("output", "input", "kernel", "bias")
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Largest error, as a share of the norm: the input's gradient is rounded in two parts, and as their sum."""


@pytest.fixture(autouse=True)
def emulated(emulate, monkeypatch):
    """The launches of a test, which run on the CPU, with their grids."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    module._fastest_cut.cache_clear()
    return emulate(module, alignment=16)


def make(size=(7, 9), batch=2, channels=8, dtype=torch.float32, scale=0.5, seed=0):
    """x channels last, kernel, bias; kernel and bias float32."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x = draw(batch, channels, *size).to(dtype).to(memory_format=torch.channels_last)
    kernel, bias = scale * draw(channels, 4, 3, 3).float(), scale * draw(channels).float()
    return [t.requires_grad_() for t in (x, kernel, bias)]


def run(function, inputs):
    """Output and gradients for a weighting that depends on nothing but the shape."""
    output = function(*inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return output, *torch.autograd.grad(output, inputs, weight.to(output.dtype))


def reference(inputs):
    """The same in float64."""
    return run(gated_conv_torch, [t.detach().double().requires_grad_() for t in inputs])


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=None):
    tolerance = tolerance or ROUNDING[inputs[0].dtype]
    actual, expected = run(module.run, inputs), reference(inputs)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (1, 8), (5, 1), (2, 2), (3, 5), (16, 18), (11, 33)])
def test_sizes(size):
    check(make(size))


@pytest.mark.parametrize("channels", [4, 64, 68, 136])
def test_channels(channels):
    check(make((4, 5), channels=channels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(7, 9), (4, 32)])
def test_half_precision(dtype, size):
    check(make(size, channels=12, dtype=dtype))


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_gates_that_are_nearly_closed_or_open(dtype):
    for scale in (1e-3, 4.0):
        inputs = make(dtype=dtype, scale=scale)
        check(inputs)
        output, expected = module.run(*inputs), gated_conv_torch(*(t.double() for t in inputs))
        # element by element: the rounding of the output, and that of the fast tanh
        share = {torch.float32: 2e-5, torch.bfloat16: 2**-8 + 2**-11, torch.float16: 2**-11 + 2**-13}[dtype]
        torch.testing.assert_close(output.double(), expected, rtol=share, atol=1e-6)


@pytest.mark.parametrize("processors", [1, 5, 60])
@pytest.mark.parametrize("size", [(23, 6), (9, 20)])
def test_any_way_to_cut_the_map_gives_the_same(monkeypatch, emulated, processors, size):
    inputs = make(size)
    expected = run(module.run, inputs)
    emulated.clear()
    module._fastest_cut.cache_clear()
    monkeypatch.setattr(module, "multiprocessors", lambda device: processors)
    actual = run(module.run, inputs)
    for a, e in zip(actual[:2], expected[:2], strict=True):  # which nothing is added up for
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    for a, e in zip(actual[2:], expected[2:], strict=True):
        assert relative(a, e) < 1e-6
    assert processors == 1 or max(math.prod(grid) for _, grid in emulated) > 2


@pytest.mark.parametrize("segments", range(1, 8))
@pytest.mark.parametrize("parts", [1, 3, 40])
def test_every_segment_and_part(monkeypatch, segments, parts):
    rows = math.ceil(13 / math.ceil(13 / segments))
    monkeypatch.setattr(module, "_cut", lambda name, x: (rows, parts))
    check(make((13, 5), channels=4))


@pytest.mark.parametrize("name", module._SETS)
def test_cuts(name):
    for shape in (
        (8, 120, 160, 1024),
        (1, 120, 160, 1024),
        (8, 15, 20, 2048),
        (1, 11, 38, 5120),
        (3, 1, 1, 4),
    ):
        segments, parts = module._fastest_cut(module._SETS[name], *shape, 264)
        rows = math.ceil(shape[1] / segments)
        assert (segments - 1) * rows < shape[1] <= segments * rows
        assert 1 <= parts <= module._MOST_PARTS


def test_threads_in_any_order(monkeypatch):
    inputs = make()
    expected = run(module.run, inputs)
    monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
    for a, e in zip(run(module.run, inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_deterministic():
    inputs = make((11, 13))
    for a, e in zip(*(run(module.run, inputs) for _ in range(2)), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_layouts():
    inputs = make()
    expected = run(module.run, inputs)
    x, kernel, bias = (t.detach() for t in inputs)
    memory = torch.empty(x.numel() + 1)  # contiguous, but not on a multiple of 16 bytes
    shifted = memory[1:].view(2, 7, 9, 8).permute(0, 3, 1, 2).copy_(x)
    strided = kernel.repeat_interleave(2, dim=-1)[..., ::2], bias.repeat_interleave(2)[::2]
    for other in (
        (x.contiguous(), kernel, bias),
        (x.transpose(2, 3).contiguous().transpose(2, 3), kernel, bias),
        (shifted, kernel, bias),
        (x, *strided),
    ):
        for a, e in zip(run(module.run, [t.requires_grad_() for t in other]), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_channels_last_is_not_copied(monkeypatch):
    x, kernel, bias = (t.detach() for t in make())
    addresses = []
    start = module.launch
    monkeypatch.setattr(
        module, "launch", lambda *a, **k: (addresses.append(a[2][0].data_ptr()), start(*a, **k))
    )
    module.run(x, kernel, bias)
    assert addresses == [x.data_ptr()]


@pytest.mark.parametrize("shape", [(0, 8, 5, 6), (2, 8, 0, 6)])
def test_nothing_to_do(shape, emulated):
    _, kernel, bias = make()
    inputs = [torch.zeros(shape, requires_grad=True), kernel, bias]
    output, *gradients = run(module.run, inputs)
    assert output.shape == shape
    assert not emulated
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def test_what_is_not_finite_stays_where_it_is():
    x, kernel, bias = (t.detach() for t in make((9, 11)))
    expected = module.run(x, kernel, bias)
    x[0, 1, 4, 5] = torch.nan
    actual = module.run(x, kernel, bias)
    touched = torch.zeros(x.shape, dtype=torch.bool)
    touched[0, :4, 3:6, 4:7] = True
    assert actual[touched].isnan().all()
    torch.testing.assert_close(actual[~touched], expected[~touched], rtol=0, atol=0)


def test_autocast_converts_x_and_nothing_else(emulated):
    x, kernel, bias = make(channels=12)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(module.run, (x, kernel, bias))
    assert inside[0].dtype == torch.bfloat16
    assert [g.dtype for g in inside[1:]] == [torch.float32] * 3
    narrow = [x.detach().bfloat16().requires_grad_(), kernel, bias]
    for a, e in zip(inside, run(module.run, narrow), strict=True):
        torch.testing.assert_close(a.float(), e.float(), rtol=0, atol=0)


def test_kernel_and_bias_of_another_type():
    x, kernel, bias = make(dtype=torch.bfloat16)
    narrow = [x, *(t.detach().bfloat16().requires_grad_() for t in (kernel, bias))]
    check(narrow, tolerance=2**-8)


def test_gradients_that_nobody_wants_are_left_out():
    x, kernel, bias = make()
    output = module.run(x.detach(), kernel, bias.detach())
    (gradient,) = torch.autograd.grad(output.sum(), [kernel])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_obeys_the_rules_of_torch_library(dtype):
    x, kernel, bias = make((4, 5), dtype=dtype)
    x = x.detach().permute(0, 2, 3, 1).requires_grad_()
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.library.opcheck(module.gated_conv, (x, kernel, bias), **tolerance)


def test_compiles_without_a_graph_break():
    inputs = make()
    compiled = torch.compile(module.run, fullgraph=True, backend="aot_eager")
    for a, e in zip(run(compiled, inputs), run(module.run, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(*inputs).dtype == torch.bfloat16


def test_second_derivatives_are_refused():
    inputs = make()
    (gradient,) = torch.autograd.grad(module.run(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def _meta(shape, dtype=torch.float32):
    x = torch.empty(shape, device="meta", dtype=dtype)
    return x, torch.empty(shape[1], 4, 3, 3, device="meta"), torch.empty(shape[1], device="meta")


def test_why_not(monkeypatch):
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(module, "why_not_on", lambda *key: "")
    assert module.why_not(*_meta((2, 32, 5, 6))) == ""
    assert module.why_not(*_meta((8, 1024, 800, 1000))) == ""  # more than 2**31 elements
    assert "float64" in module.why_not(*_meta((2, 32, 5, 6), torch.float64))
    assert "shape" in module.why_not(*_meta((2, 4, 50000, 50000)))
    monkeypatch.undo()
    assert "the input is on meta" in module.why_not(*_meta((2, 32, 5, 6)))


def test_the_public_function_takes_the_kernels_where_it_can(monkeypatch):
    public = importlib.import_module("sa2depth.ops.gated_conv")  # sa2depth.ops.gated_conv is the function
    inputs = make()
    with use_backend("cuda"):
        with pytest.raises(ConfigError, match="the input is on cpu"):
            gated_conv(*inputs)
        fast = replace(public.OPERATOR.backend("cuda"), why_not=lambda *inputs: "")
        monkeypatch.setattr(
            public, "OPERATOR", replace(public.OPERATOR, backends=(fast, public.OPERATOR.backends[-1]))
        )
        for a, e in zip(run(gated_conv, inputs), run(module.run, inputs), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)
        with pytest.raises(ShapeError, match="multiple of 4"):
            gated_conv(inputs[0][:, :6], *inputs[1:])


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
    sources = []
    monkeypatch.setattr(module, "launch", lambda source, *_, **__: sources.append(source))
    run(module.run, make((5, 6), dtype=dtype))
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    caplog.set_level(logging.DEBUG, "sa2depth.ops.runtime.nvrtc.compiler")
    for source in sources:
        compile_kernels(csrc_dir() / source.path, architecture, dict(source.macros))
    assert re.findall(r"(\d+) bytes spill stores", caplog.text) == ["0", "0", "0"]
