"""The CUDA kernels of DCNv3, run on the CPU by an emulator: the sources of csrc/, thread by thread."""

import importlib
import logging
import re

import pytest
import torch
from torch import Tensor

from sa2depth.ops.dcnv3 import cuda as module
from sa2depth.ops.dcnv3.torch import run as run_in_torch
from sa2depth.ops.runtime.nvrtc import compile_kernels
from sa2depth.resources import csrc_dir

NAMES = ("output", "input", "offset", "mask")


@pytest.fixture(autouse=True)
def emulated(emulate):
    """The launches of a test, which run on the CPU, with their macros."""
    return emulate(module, note=lambda source, grid: dict(source.macros), alignment=16)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(
    size=(9, 11), batch=2, groups=2, group_channels=16, spread=1.0, dtype=torch.float32,
    point_dtype=torch.float32, seed=0, stride=1, padding=1, dilation=1, offset_scale=1.0, remove_center=False,
    softmax=False,
):  # fmt: skip
    points = 9 - remove_center
    rows, columns = ((n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in size)
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x = draw(batch, *size, groups * group_channels).to(dtype)
    offset = spread * draw(batch, rows, columns, groups * points * 2)
    if point_dtype != torch.float32:  # which is coarse: keep away from whole pixels, where slopes jump
        offset = (8 * offset).floor() / 8 + 1 / 16
    offset = offset.to(point_dtype)
    mask = draw(batch, rows, columns, groups, points)
    mask = (mask if softmax else mask.softmax(dim=-1)).flatten(3).to(point_dtype)
    options = (groups, 3, stride, padding, dilation, offset_scale, remove_center, softmax)
    return [t.requires_grad_() for t in (x, offset, mask)], options


def dcnv3_torch(x, offset, mask, *options):
    return run_in_torch(x, (offset, mask), *options)


def joined(x, points, *options):
    return module.run(x, (points,), *options)


def kernels(x, offset, mask, *options):
    return module.run(x, (offset, mask), *options)


def run(function, inputs, options):
    """Output and gradients for a weighting that depends on nothing but the shape and the dtype of the output."""
    output = function(*inputs, *options)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = weight.to(inputs[0].dtype if inputs[0].dtype != torch.float64 else weight.dtype)
    return output, *torch.autograd.grad(output, inputs, weight)


def reference(inputs, options):
    """The same in float64, with the same weighting."""
    narrow = inputs[0].dtype
    exact = [t.detach().double().requires_grad_() for t in inputs]
    output = dcnv3_torch(*exact, *options)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return output, *torch.autograd.grad(output, exact, weight.to(narrow).double())


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, options, tolerance=3e-6):
    actual, expected = run(kernels, inputs, options), reference(inputs, options)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


@pytest.mark.parametrize("size", [(9, 11), (1, 1), (1, 20), (17, 2), (8, 16)])
def test_sizes(size):
    check(*make(size))


@pytest.mark.parametrize(
    "options",
    [
        {"offset_scale": 2.0},
        {"offset_scale": 0.5, "dilation": 2, "padding": 2},
        {"stride": 2},
        {"padding": 0},
        {"padding": 3},
        {"remove_center": True},
        {"remove_center": True, "stride": 3, "offset_scale": 1.5},
        {"softmax": True},
        {"softmax": True, "remove_center": True, "offset_scale": 2.0},
    ],
    ids=str,
)
def test_options(options):
    check(*make(**options))


def test_points_a_hairs_breadth_inside():
    # 16 - 2^-20 is a float32, 17 - 2^-20 is none
    inputs, options = make((16, 16), batch=1, groups=1)
    inputs[1] = torch.full_like(inputs[1], -(2.0**-20)).requires_grad_()
    check(inputs, options)


@pytest.mark.parametrize(("groups", "group_channels"), [(1, 8), (3, 16), (5, 32), (4, 64)])
@pytest.mark.parametrize("softmax", [False, True])
def test_groups(groups, group_channels, softmax):
    check(*make((5, 6), groups=groups, group_channels=group_channels, softmax=softmax))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("groups", "padding"), [(2, 0), (2, 10), (3, 0), (3, 1)])
def test_joined_rows_aligned_or_not(groups, padding, dtype):
    (x, offset, mask), options = make((5, 6), groups=groups, softmax=True, point_dtype=dtype)
    points = torch.cat((offset, mask, mask[..., :padding]), dim=-1).detach().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    output = module.run(x, (points,), *options)
    results = output, *torch.autograd.grad(output, (x, points), weight)
    expected = reference((x, offset, mask), options)
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 3e-3}[dtype]
    used = 27 * groups
    pairs = [
        *zip(results[:2], expected[:2], strict=True),
        (results[2][..., :used], torch.cat(expected[2:], dim=-1)),
    ]
    assert max(relative(a, e) for a, e in pairs) < tolerance
    assert not results[2][..., used:].any()
    assert results[2].is_contiguous()


def test_logits_of_any_size():
    inputs, options = make((5, 6), softmax=True)
    with torch.no_grad():
        inputs[2].mul_(100)
        inputs[2][0, 0, 0, 3] = -torch.inf
    check(inputs, options, tolerance=1e-5)
    with torch.no_grad():
        inputs[2][0, 0, 0, 4] = torch.nan
    output = kernels(*inputs, *options)
    assert output[0, 0, 0, :16].isnan().all()
    assert output.isnan().sum() == 16


@pytest.mark.parametrize(
    ("dtype", "group_channels"), [(torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float16, 8)]
)
def test_half_precision_input(dtype, group_channels):
    # sums are float32: what is lost is one rounding of the output and of the input's gradient
    inputs, options = make((6, 7), group_channels=group_channels, dtype=dtype)
    actual, expected = run(kernels, inputs, options), reference(inputs, options)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for a, e in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1.01 * rounding, atol=1e-6)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 3e-6


@pytest.mark.parametrize("point_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_offsets_are_sampled_in_float32(point_dtype):
    inputs, options = make((6, 40), point_dtype=point_dtype)
    check(inputs, options, tolerance={torch.bfloat16: 3e-3, torch.float16: 4e-4}[point_dtype])
    assert relative(kernels(*inputs, *options), reference(inputs, options)[0]) < 3e-6


def test_offset_and_mask_of_different_types():
    inputs, options = make((5, 6), point_dtype=torch.float16)
    inputs[1] = inputs[1].detach().float().requires_grad_()
    check(inputs, options, tolerance=4e-4)


@pytest.mark.parametrize("spread", [5.0, 100.0])
def test_offsets_of_any_size(spread):
    check(*make((20, 24), batch=1, spread=spread), tolerance=1e-5)


def test_whole_pixels():
    inputs, options = make((9, 11), spread=0.0)
    actual, expected = run(kernels, inputs, options), reference(inputs, options)
    for index in (0, 1, 3):
        assert relative(actual[index], expected[index]) < 3e-6
    # Slopes jump there: the kernels take the one to the right and below, also at -1.
    slopes = actual[2]
    assert slopes.view(2, 9, 11, 2, 9, 2)[:, 0, :, :, ::3].any()
    with torch.no_grad():
        inputs[1].fill_(1e-4)
    torch.testing.assert_close(slopes.double(), reference(inputs, options)[2], rtol=1e-2, atol=1e-3)


def test_far_points_reach_the_border_and_no_further():
    inputs, options = make((20, 20), batch=1, groups=1)
    with torch.no_grad():
        inputs[1].uniform_(-22, 22)
    check(inputs, options, tolerance=1e-5)


def test_offsets_that_are_no_place():
    inputs, options = make((5, 6))
    expected = [t.clone() for t in run(kernels, inputs, options)]
    inputs, _ = make((5, 6))
    with torch.no_grad():
        inputs[1].view(2, 5, 6, 2, 9, 2)[0, 2, 3, 1] = torch.tensor(
            [[torch.nan, 0], [torch.inf, 0], [-1e30, 1e38]] * 3
        )
    actual = run(kernels, inputs, options)
    assert all(t.isfinite().all() for t in actual)
    assert not actual[0][0, 2, 3, 16:].any()
    untouched = torch.ones(2, 5, 6, 32, dtype=torch.bool)
    untouched[0, 2, 3, 16:] = False
    torch.testing.assert_close(actual[0][untouched], expected[0][untouched], rtol=0, atol=0)


def test_pixels_that_are_not_read_do_not_count():
    inputs, options = make((6, 7), batch=1, spread=0.0)
    with torch.no_grad():
        inputs[0][0, 0, 0] = torch.inf
        # a pixel above: on row 0 the point would lie outside, and must not read row 0 instead
        inputs[1].view(1, 6, 7, 2, 9, 2)[..., 1] = -3.0
    output = kernels(*inputs, *options)
    assert output[0, 0, 0].isfinite().all()
    assert output[0, 4, 0].isinf().any()


@pytest.mark.parametrize("warps", [1, 40, 10000])
def test_strips_of_any_length(warps, monkeypatch):
    monkeypatch.setattr(module, "_warps", lambda device: warps)
    check(*make((23, 10), batch=1, spread=3.0))


@pytest.mark.parametrize("softmax", [False, True])
def test_far_points_next_to_near_ones(softmax):
    inputs, options = make((12, 19), batch=1, softmax=softmax)
    with torch.no_grad():
        inputs[1][:, ::3, ::2] *= 7
    check(inputs, options, tolerance=1e-5)


@pytest.mark.parametrize(
    ("spread", "dtype", "softmax"),
    [(1.0, torch.float32, False), (1.0, torch.float32, True), (20.0, torch.bfloat16, False)],
)
def test_deterministic_sums_are_exact(deterministic, emulated, dtype, spread, softmax):
    inputs, options = make((17, 18), batch=1, spread=spread, dtype=dtype, softmax=softmax)
    check(inputs, options, tolerance={torch.float32: 1e-5, torch.bfloat16: 3e-3}[dtype])
    assert emulated[-1][1]["DETERMINISTIC"] == 1


@pytest.mark.parametrize("size", [1e-30, 1e30, 0.0])
def test_deterministic_sums_of_any_size(deterministic, size):
    (x, offset, mask), options = make((6, 7))
    grad = size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    points = torch.cat((offset, mask), dim=-1)
    actual = module.dcnv3_backward(grad, x.detach(), points.detach(), 2, 1, 1, 1, 1.0, False, False)
    exact = [t.detach().double().requires_grad_() for t in (x, offset, mask)]
    expected = torch.autograd.grad(dcnv3_torch(*exact, *options), exact, grad.double())
    assert relative(actual[0] / (size or 1), expected[0] / (size or 1)) < 3e-6


def test_deterministic_sums_show_what_is_not_finite(deterministic):
    (x, offset, mask), _ = make((6, 7))
    grad = torch.ones(x.shape)
    grad[0, 0, 0, 0] = torch.inf
    arguments = (t.detach() for t in (x, torch.cat((offset, mask), dim=-1)))
    assert module.dcnv3_backward(grad, *arguments, 2, 1, 1, 1, 1.0, False, False)[0].isnan().all()


def test_layouts():
    (x, offset, mask), options = make((5, 6))
    inputs = [x.detach(), torch.cat((offset, mask), dim=-1).detach()]
    expected = run(joined, [t.requires_grad_() for t in inputs], options)
    strided = [t.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for t in inputs]
    moved = []
    for t in inputs:  # contiguous, but not on a multiple of 16 bytes
        memory = torch.empty(t.numel() + 1)
        moved.append(memory[1:].view(t.shape).copy_(t.detach()).requires_grad_())
    for other in (strided, moved):
        for a, e in zip(run(joined, other, options), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"size": (1, 1), "padding": 0, "dilation": 0}, {"size": (2, 5), "padding": 0}]
)
def test_nothing_to_do(sizes, emulated):
    inputs, options = make(**sizes)
    output, *gradients = run(kernels, inputs, options)
    assert bool(emulated) == bool(output.numel())
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert output.numel() or not gradients[0].any()


def test_gradients_that_nobody_wants_are_left_out():
    (x, offset, mask), options = make((5, 6))
    output = kernels(x.detach(), offset, mask.detach(), *options)
    (gradient,) = torch.autograd.grad(output.sum(), [offset])
    assert gradient.isfinite().all()


def test_operator_obeys_the_rules_of_torch_library():
    def joined(x, offset, mask):
        return x, torch.cat((offset, mask), dim=-1).detach().requires_grad_()

    inputs = joined(*make((5, 6))[0])
    torch.library.opcheck(module.dcnv3, (*inputs, 2, 1, 1, 1, 1.0, False, True), atol=1e-5, rtol=1e-4)
    wide = joined(*make((9, 9), stride=2, remove_center=True, dtype=torch.bfloat16)[0])
    torch.library.opcheck(module.dcnv3, (*wide, 2, 2, 1, 1, 1.0, True, False), atol=1e-2, rtol=1e-2)


def test_second_derivatives_are_refused():
    inputs, options = make((5, 6))
    (gradient,) = torch.autograd.grad(
        kernels(*inputs, *options).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def _meta(shape, groups=2, dtype=torch.float32, stride=1):
    rows, columns = ((n - 1) // stride + 1 for n in shape[1:3])
    x = torch.empty(shape, device="meta", dtype=dtype)
    return x, (
        x.new_empty(*shape[:1], rows, columns, groups * 18),
        x.new_empty(*shape[:1], rows, columns, groups * 9),
    )


def test_why_not(monkeypatch):
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(module, "why_not_on", lambda *key: "")
    assert module.why_not(*_meta((2, 5, 6, 32)), 2, 3) == ""
    assert module.why_not(*_meta((8, 4000, 5000, 32)), 2, 3) == ""  # more than 2**31 elements
    assert "float64" in module.why_not(*_meta((2, 5, 6, 32), dtype=torch.float64), 2, 3)
    assert "12 channels" in module.why_not(*_meta((2, 5, 6, 24)), 2, 3)
    assert "3x3, not 5x5" in module.why_not(*_meta((2, 5, 6, 32)), 2, 5)
    assert "shape" in module.why_not(*_meta((1, 100, 40000, 32), stride=9), 2, 3)
    monkeypatch.undo()
    assert "the input is on meta" in module.why_not(*_meta((2, 5, 6, 32)), 2, 3)


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
    run(kernels, *make((5, 6), dtype=dtype, point_dtype=dtype, softmax=True))
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    caplog.set_level(logging.DEBUG, "sa2depth.ops.runtime.nvrtc.compiler")
    for source in sources:
        compile_kernels(csrc_dir() / source.path, architecture, dict(source.macros))
    assert re.findall(r"(\d+) bytes spill stores", caplog.text) == ["0", "0", "0"]
