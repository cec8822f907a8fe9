"""The CUDA kernels of layer normalisation, run on the CPU by an emulator: the sources of csrc/, thread by thread."""

import importlib
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sa2depth.ops.layer_norm import cuda as module
from sa2depth.ops.runtime.nvrtc import compile_kernels
from sa2depth.resources import csrc_dir

NAMES = ("output", "input", "weight", "bias")
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
EPS = 1e-5


@pytest.fixture(autouse=True)
def emulated(emulate):
    """The launches of a test, which run on the CPU, with their macros and grids."""
    return emulate(module, note=lambda source, grid: (dict(source.macros), grid), alignment=16)


def make(shape=(2, 7, 64), dtype=torch.float32, shift=0.5):
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    inputs = [(draw(*shape) + shift).to(dtype), draw(shape[-1]).float(), draw(shape[-1]).float()]
    return [t.requires_grad_() for t in inputs]


def kernels(x, weight, bias, gelu=False):
    return module.run(x, weight, bias, EPS, gelu)


def torch_path(x, weight, bias, gelu=False):
    output = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return F.gelu(output) if gelu else output


def run(inputs, function=kernels, narrow=None, **options):
    """Output and gradients for a weighting that depends on nothing but the shape and the narrower dtype."""
    output = function(*inputs, **options)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return output, *torch.autograd.grad(output, inputs, weight.to(narrow or output.dtype).to(output.dtype))


def reference(inputs, narrow=None, **options):
    exact = [t.detach().double().requires_grad_() for t in inputs]
    return run(exact, torch_path, narrow or inputs[0].dtype, **options)


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, tolerance=1e-6, **options):
    actual, expected = run(inputs, **options), reference(inputs, **options)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


def check_rounded(actual, expected):
    """Arithmetic is float32: what is lost is one rounding, of the output and of the input's gradient."""
    for a, e in zip(actual[:2], expected[:2], strict=True):
        rounding = ROUNDING.get(a.dtype, 2e-6)
        torch.testing.assert_close(a.double(), e, rtol=1.01 * rounding, atol=1e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 1e-6


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "channels", [8, 32, 40, 64, 80, 96, 128, 160, 256, 320, 512, 640, 1000, 1024, 1280, 8192]
)
def test_channels(channels, gelu, emulated):
    check(make((11 if channels < 1024 else 3, channels)), gelu=gelu)
    teams = [name.rpartition("_")[2] for name, _ in emulated[:2]]
    assert teams[0] == teams[1]
    lanes, values = (int(number) for number in teams[0].split("x"))
    assert channels <= lanes * values <= max(32, 2.1 * channels) or channels > 1024


def test_every_team_is_of_use():
    assert {module._team(channels) for channels in range(8, 8193, 8)} == set(module._TEAMS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [32, 80, 256, 512, 760, 1024, 1280])
def test_half_precision(channels, dtype):
    inputs = make((5, channels), dtype)
    check_rounded(run(inputs), reference(inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_gelu(dtype):
    inputs = make((70, 40), dtype)
    check_rounded(run(inputs, gelu=True), reference(inputs, gelu=True))


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 131, 700])
@pytest.mark.parametrize("channels", [32, 64, 240])
def test_rows(channels, rows):
    check(make((rows, channels)))


def test_many_rows_in_few_blocks(emulated, monkeypatch):
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    check(make((1300, 64)), tolerance=2e-6)
    name, (_, grid) = emulated[1]
    assert name == "layer_norm_backward_8x8"
    assert 1 < grid[0] <= 5


@pytest.mark.parametrize("shape", [(300, 32), (40, 256), (5, 1280), (5, 8192)])
def test_threads_in_the_other_order(shape, monkeypatch):
    inputs = make(shape)
    expected = run(inputs)
    monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
    for a, e in zip(run(inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [64, 80, 1280])
def test_a_large_mean_does_not_cancel(channels):
    inputs = make((9, channels), shift=1000.0)
    assert relative(run(inputs)[0], reference(inputs)[0]) < 1e-4  # torch's own float32 is as far off
    with torch.no_grad():
        inputs[0].fill_(3.25)
    output, _ = module.layer_norm(*inputs, EPS, False, torch.float32, False)
    torch.testing.assert_close(output, inputs[2].expand_as(output), rtol=0, atol=1e-6)


def test_what_is_not_finite_stays_in_its_row():
    inputs = make((40, 80))
    with torch.no_grad():
        inputs[0][7, 3] = torch.inf
        inputs[0][9, 79] = torch.nan
    output, grad_x, *_ = run(inputs)
    bad = torch.zeros(40, dtype=torch.bool)
    bad[[7, 9]] = True
    for tensor in (output, grad_x):
        assert torch.equal(tensor.isfinite().all(dim=1), ~bad)


def test_layouts():
    inputs = make((2, 6, 5, 64))
    expected = run(inputs)
    x, weight, bias = (t.detach() for t in inputs)
    moved = (
        torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    )  # contiguous, but not on a multiple of 16 bytes
    pitched = F.pad(x, (8, 56))[..., 8:72]
    oddly_pitched = F.pad(x, (0, 1))[..., :64]
    rows_apart = F.pad(x, (0, 0, 0, 3))[:, :, :5]
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    channels_first = x.movedim(-1, 1).contiguous().movedim(1, -1)
    for other in (moved, pitched, oddly_pitched, rows_apart, strided, channels_first):
        assert other.data_ptr() % 16 or not other.is_contiguous()
        actual = run([t.detach().requires_grad_() for t in (other, weight, bias)])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)
    parameters = [t.repeat_interleave(2)[::2].requires_grad_() for t in (weight, bias)]
    for a, e in zip(run([inputs[0], *parameters]), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, :1].expand(-1, 5, -1),
        lambda t: t[:1].expand(5, -1, -1),
        lambda t: t[:1, :1].expand(3, 4, -1),
        lambda t: t[:, :1, None].expand(-1, 3, 4, -1),
    ],
    ids=["inner", "outer", "both", "two"],
)
@pytest.mark.parametrize("space", [0, 32])
def test_one_row_for_many(view, space):
    large, weight, bias = make((2, 3, 64 + space))
    x, weight, bias = view(large.detach()[..., :64]), weight.detach()[:64], bias.detach()[:64]
    torch.testing.assert_close(kernels(x, weight, bias), torch_path(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_sum_over_rows():
    inputs = make((2, 5, 64))
    for function in (kernels, torch_path):
        function(*inputs).sum(1).square().sum().backward()
    x, weight, bias = (t.grad for t in inputs)
    inputs = [t.detach().requires_grad_() for t in inputs]
    torch_path(*inputs).sum(1).square().sum().backward()
    for actual, expected in zip((x, weight, bias), inputs, strict=True):
        torch.testing.assert_close(actual, 2 * expected.grad, rtol=1e-4, atol=1e-4)


def test_a_trace_sees_the_operator():
    x, weight, bias = (t.detach() for t in make((2, 3, 64)))
    traced = torch.jit.trace(lambda x: kernels(x, weight, bias), x, check_trace=False)
    assert "layer_norm_cuda" in str(traced.graph)


def test_evenly_spaced_rows_are_not_copied():
    wide = torch.randn(3, 4, 160)
    for x, stride in (
        (wide, 160),
        (wide[..., 32:96], 160),
        (wide[:, :1], 640),
        (wide[:1, :1, 8:16], 8),
        (wide[0, 0], 160),
    ):
        memory, found = module.rows_in_memory(x)
        assert memory.data_ptr() == x.data_ptr()
        assert memory.is_contiguous()
        assert found == stride
    for x in (wide[:, :3], wide[..., ::2], wide[:, ::2, :80][:, :, 1:], wide[:1, :1].expand(3, 4, 160)):
        memory, found = module.rows_in_memory(x)
        assert torch.equal(memory, x)
        assert found == x.shape[-1]


def test_gradients_of_a_sum():  # an expanded number
    inputs = make((20, 32))
    gradients = torch.autograd.grad(kernels(*inputs).sum(), inputs)
    torch.testing.assert_close(gradients[2], torch.full((32,), 20.0))
    assert gradients[0].abs().max() < 1e2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
def test_autocast_writes_its_dtype(gelu, dtype, emulated):
    inputs = make((9, 80), dtype)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(inputs, gelu=gelu)
    expected = reference(inputs, torch.bfloat16, gelu=gelu)
    assert [t.dtype for t in actual] == [torch.bfloat16, *(t.dtype for t in inputs)]
    check_rounded(actual, expected)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert kernels(*inputs).dtype == dtype


def test_half_precision_parameters():
    inputs = make(dtype=torch.bfloat16)
    inputs[1:] = [t.detach().bfloat16().requires_grad_() for t in inputs[1:]]
    check(inputs, tolerance=4e-3)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_nothing_to_do(shape, emulated):
    inputs = make(shape)
    output, *gradients = run(inputs)
    assert not emulated
    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def test_a_single_row():
    inputs = [t.detach().requires_grad_() for t in make((64,))]
    check(inputs)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ((True, False, False), ["forward_8x8", "backward_8x8"]),
        ((False, True, False), ["forward_8x8", "backward_8x8", "sum_parts"]),
        ((False, False, True), ["forward_8x8", "backward_8x8", "sum_parts"]),
    ],
)
def test_gradients_that_nobody_wants_are_left_out(wanted, names, emulated):
    inputs = [t.detach().requires_grad_(wants) for t, wants in zip(make(), wanted, strict=True)]
    leaf = next(t for t in inputs if t.requires_grad)
    (gradient,) = torch.autograd.grad(kernels(*inputs).square().sum(), [leaf])
    everything = torch.autograd.grad(kernels(*(every := make())).square().sum(), every)
    torch.testing.assert_close(gradient, everything[wanted.index(True)], rtol=0, atol=0)
    assert [name.removeprefix("layer_norm_") for name, _ in emulated[: len(names)]] == names


def test_statistics_are_kept_for_gradients_only(monkeypatch):
    kept = []

    def note(function):
        return lambda *arguments: kept.append(function(*arguments)) or kept[-1]

    operator = module.layer_norm
    for name in ("layer_norm", "_normalise"):  # with the dispatcher and without
        monkeypatch.setattr(module, name, note(getattr(module, name)))
    inputs = make((3, 64))
    outputs = [kernels(*inputs)]
    with torch.no_grad():
        outputs.append(kernels(*inputs))
    outputs.append(kernels(*(t.detach() for t in inputs)))
    assert [tuple(statistics.shape) for _, statistics in kept] == [(3, 2), (0,), (0,)]
    assert [output.requires_grad for output in outputs] == [True, False, False]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    output, _ = operator(*inputs, EPS, False, torch.float32, False)
    with pytest.raises(RuntimeError, match="no backward pass"):
        output.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_operator_obeys_the_rules_of_torch_library(gelu, dtype):
    x, weight, bias = make((5, 40), dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    arguments = (x, weight, bias, EPS, gelu, dtype, True)
    torch.library.opcheck(module.layer_norm, arguments, atol=tolerance, rtol=tolerance)


def test_compiles_without_a_graph_break():
    inputs = make()
    compiled = torch.compile(kernels, fullgraph=True, backend="aot_eager")
    for a, e in zip(run(inputs, compiled), run(inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_second_derivatives_are_refused():
    inputs = make()
    (gradient,) = torch.autograd.grad(kernels(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def _meta(shape, dtype=torch.float32):
    x = torch.empty(shape, device="meta", dtype=dtype)
    return x, x.new_empty(shape[-1]), x.new_empty(shape[-1])


def test_why_not(monkeypatch):
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(module, "why_not_on", lambda *key: "")
    assert module.why_not(*_meta((2, 5, 8))) == ""
    assert module.why_not(*_meta((8, 4000, 5000, 64))) == ""  # more than 2**31 elements
    assert "float64" in module.why_not(*_meta((2, 8), dtype=torch.float64))
    for channels in (0, 12, 8200):
        assert f"{channels} channels" in module.why_not(*_meta((2, channels)))
    assert "shape" in module.why_not(*_meta((2**31, 8)))
    monkeypatch.undo()
    assert "the input is on meta" in module.why_not(*_meta((2, 8)))


@pytest.mark.parametrize(
    ("dtype", "output"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("gelu", [False, True])
def test_compiles_for_devices_with_all_numbers_in_registers(
    gelu, architecture, dtype, output, monkeypatch, tmp_path, caplog
):
    pytest.importorskip("cuda.core")
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"no NVRTC: {error}")
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    caplog.set_level(logging.DEBUG, "sa2depth.ops.runtime.nvrtc.compiler")
    for name in ("forward", "backward"):
        source = module._source(name, dtype, output, gelu)
        compile_kernels(csrc_dir() / source.path, architecture, dict(source.macros))
    assert re.findall(r"(\d+) bytes spill stores", caplog.text) == ["0"] * (2 * len(module._TEAMS) + 1)
