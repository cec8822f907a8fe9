"""DCNv3 in Triton against the torch path in float64."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import dcnv3, use_backend
from sa2depth.ops.dcnv3 import dcnv3_fused
from sa2depth.ops.dcnv3 import triton as module


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def rounding(device):
    """Largest error of one number of a type; the interpreter cuts bfloat16 off."""
    cut = 2 if device.type == "cpu" else 1
    return {torch.float32: 0, torch.bfloat16: cut * 2**-8, torch.float16: 2**-11}


@pytest.fixture
def make(device):
    def make(
        size=(3, 5), batch=1, groups=2, group_channels=16, spread=1.0, dtype=torch.float32,
        point_dtype=torch.float32, **options,
    ):  # fmt: skip
        side = options.get("kernel_size", 3)
        points = side**2 - options.get("remove_center", False)
        extent = options.get("dilation", 1) * (side - 1) + 1
        rows, columns = (
            (n + 2 * options.get("padding", 1) - extent) // options.get("stride", 1) + 1 for n in size
        )
        random = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=random, dtype=torch.float64)

        x = draw(batch, *size, groups * group_channels).to(dtype)
        # between whole pixels, where slopes jump and the last bit of a coordinate decides
        offset = (8 * spread * draw(batch, rows, columns, groups * points * 2)).floor() / 8 + 1 / 16
        mask = draw(batch, rows, columns, groups, points)
        mask = (mask if options.get("softmax") else mask.softmax(dim=-1)).flatten(3).to(point_dtype)
        inputs = [t.to(device).requires_grad_() for t in (x, offset.to(point_dtype), mask)]
        return inputs, {"groups": groups, **options}

    return make


def run(inputs, options, function=dcnv3):
    """Output and gradients for a weighting that depends on nothing but the shape."""
    output = function(*inputs, **options)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    weight = weight.bfloat16().to(output)  # the same numbers in all types
    return output, *torch.autograd.grad(output, inputs, weight)


def reference(inputs, options, function=dcnv3):
    with use_backend("torch"):
        return run([t.detach().double().requires_grad_() for t in inputs], options, function)


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, options, tolerance=2e-6, function=dcnv3):
    actual, expected = run(inputs, options, function), reference(inputs, options, function)
    errors = [relative(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors) < tolerance, errors  # of output, input, offset, mask
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


@pytest.mark.parametrize(("batch", "size"), [(1, (1, 1)), (1, (1, 9)), (1, (5, 2)), (2, (3, 9))], ids=str)
def test_sizes(make, batch, size):
    check(*make(size, batch=batch))


@pytest.mark.parametrize(
    "options",
    [
        {"offset_scale": 2.0},
        {"offset_scale": 0.5, "dilation": 2, "padding": 2},
        {"stride": 2, "size": (7, 9)},
        {"padding": 0},
        {"remove_center": True},
        {"softmax": True},
        {"softmax": True, "remove_center": True, "offset_scale": 2.0, "stride": 3, "padding": 3},
    ],
    ids=str,
)
def test_options(make, options):
    check(*make(**options))


@pytest.mark.parametrize(("groups", "group_channels"), [(1, 4), (3, 8), (2, 32), (4, 64)])
def test_groups(make, groups, group_channels):
    check(*make((2, 3), groups=groups, group_channels=group_channels))


@pytest.mark.parametrize(
    ("groups", "padding", "dtype"),
    [(2, 10, torch.float32), (3, 0, torch.float32), (2, 0, torch.float16), (3, 1, torch.bfloat16)],
)
def test_joined_offsets_and_logits(make, rounding, groups, padding, dtype):
    (x, offset, logits), options = make((3, 5), groups=groups, point_dtype=dtype, softmax=True)
    del options["softmax"]
    inputs = [x, torch.cat((offset, logits, logits[..., :padding]), dim=-1).detach().requires_grad_()]
    check(inputs, options, 2e-6 + rounding[dtype], dcnv3_fused)
    assert not run(inputs, options, dcnv3_fused)[2][..., 27 * groups :].any()


def test_logits_of_any_size(make):
    inputs, options = make(softmax=True)
    with torch.no_grad():
        inputs[2].mul_(100)
        inputs[2][0, 0, 0, 3] = -torch.inf
    check(inputs, options, tolerance=1e-5)
    with torch.no_grad():
        inputs[2][0, 0, 0, 4] = torch.nan
    output = dcnv3(*inputs, **options)
    assert output[0, 0, 0, :16].isnan().all()
    assert output.isnan().sum() == 16


@pytest.mark.parametrize(
    ("dtype", "group_channels"), [(torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float16, 4)]
)
def test_half_precision_input(make, rounding, dtype, group_channels):
    # sums are float32: what is lost is one rounding of the output and of the input's gradient
    inputs, options = make((2, 3), group_channels=group_channels, dtype=dtype)
    actual, expected = run(inputs, options), reference(inputs, options)
    for a, e in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1.02 * rounding[dtype], atol=3e-6)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 2e-6


def test_half_precision_offsets_are_sampled_in_float32(make):
    inputs, options = make((1, 33), groups=1, point_dtype=torch.bfloat16)
    assert relative(dcnv3(*inputs, **options), reference(inputs, options)[0]) < 2e-6


@pytest.mark.parametrize("spread", [5.0, 100.0])
def test_offsets_out_of_the_window_and_out_of_the_image(make, spread):
    check(*make((4, 11), groups=1, spread=spread), tolerance=1e-5)


def test_slopes_at_whole_pixels_are_those_to_the_right_and_below(make):
    inputs, options = make()
    with torch.no_grad():
        inputs[1].zero_()
    slopes = run(inputs, options)[2]
    with torch.no_grad():
        inputs[1].fill_(1e-4)
    torch.testing.assert_close(slopes.double(), reference(inputs, options)[2], rtol=1e-2, atol=1e-3)


def test_offsets_that_are_no_place(make):
    inputs, options = make()
    expected = dcnv3(*inputs, **options)
    with torch.no_grad():
        inputs[1][0, 2, 3] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9] * 6)
    actual = run(inputs, options)
    assert all(t.isfinite().all() for t in actual)
    assert not actual[0][0, 2, 3].any()
    assert torch.equal(actual[0][0, :2], expected[0, :2])


def test_pixels_that_are_not_read_do_not_count(make):
    inputs, options = make((5, 3), groups=1)
    with torch.no_grad():
        inputs[1].zero_()
        inputs[0][0, 0, 0] = torch.inf
        # on row 0 the point would lie outside, and must not read row 0 instead
        inputs[1].view(1, 5, 3, 1, 9, 2)[..., 1] = -3.0
    output = dcnv3(*inputs, **options)
    assert output[0, 0, 0].isfinite().all()
    assert output[0, 4, 0].isinf().any()


@pytest.mark.parametrize(
    ("spread", "dtype", "softmax"),
    [(1.0, torch.float32, True), (20.0, torch.bfloat16, False)],
)
def test_deterministic_mode_gives_the_same_bits(make, deterministic, rounding, dtype, spread, softmax):
    inputs, options = make(spread=spread, dtype=dtype, softmax=softmax)
    first, second = run(inputs, options), run(inputs, options)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.use_deterministic_algorithms(False)  # grid_sample has no deterministic backward pass on a GPU
    expected = reference(inputs, options)
    assert max(relative(a, e) for a, e in zip(first, expected, strict=True)) < 1e-5 + rounding[dtype]


@pytest.mark.parametrize("size", [1e-30, 1e30, 0.0])
def test_deterministic_sums_of_any_size(make, deterministic, size):
    (x, offset, mask), options = make()
    grad = size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    points = torch.cat((offset, mask), dim=-1)
    actual = module.dcnv3_backward(grad, x.detach(), points.detach(), 2, 1, 1, 1, 1.0, False, False)
    torch.use_deterministic_algorithms(False)
    exact = [t.detach().double().requires_grad_() for t in (x, offset, mask)]
    with use_backend("torch"):
        expected = torch.autograd.grad(dcnv3(*exact, **options), exact, grad.double())
    assert relative(actual[0].double() / (size or 1), expected[0] / (size or 1)) < 2e-6


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, in the interpreter
def test_deterministic_mode_shows_what_is_not_finite(make, deterministic):
    inputs, options = make()
    output = dcnv3(*inputs, **options)
    (gradient,) = torch.autograd.grad(output, inputs[:1], torch.full_like(output, torch.inf))
    assert gradient.isnan().all()


def test_all_but_the_gradient_of_the_input_always_give_the_same_bits(make):
    first, second = (run(*make()) for _ in range(2))
    assert all(torch.equal(first[index], second[index]) for index in (0, 2, 3))


def test_memory_layouts(make):
    inputs, options = make()
    expected = run(inputs, options)
    strided = [t.detach().repeat_interleave(2, dim=-1)[..., ::2] for t in inputs]
    channels_first = [t.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in inputs]
    shifted = [  # contiguous, but not on a multiple of 16 bytes
        torch.zeros(t.numel() + 1).to(t)[1:].view(t.shape).copy_(t.detach()) for t in inputs
    ]
    for other in (strided, channels_first, shifted):
        actual = run([t.requires_grad_() for t in other], options)
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            if index == 1:  # added in any order
                assert relative(a, e) < 1e-6
            else:
                assert torch.equal(a, e)


def test_joined_points_off_their_alignment(make):
    (x, offset, logits), options = make(softmax=True)
    del options["softmax"]
    points = torch.cat((offset, logits), dim=-1).detach()
    shifted = torch.zeros(points.numel() + 1).to(points)[1:].view(points.shape).copy_(points)
    with torch.no_grad():
        assert torch.equal(dcnv3_fused(x, shifted, **options), dcnv3_fused(x, points, **options))


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"size": (2, 5), "padding": 0}], ids=str)
def test_nothing_to_do(make, sizes):
    inputs, options = make(**sizes)
    output, *gradients = run(inputs, options)
    assert output.numel() == 0
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not gradients[0].any()


def test_gradients_that_nobody_wants_are_left_out(make):
    inputs, options = make()
    expected = reference(inputs, options)
    for index in range(2):
        some = [t.detach().requires_grad_(i == index) for i, t in enumerate(inputs)]
        output = dcnv3(*some, **options)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(output)
        (gradient,) = torch.autograd.grad(output, [some[index]], weight)
        assert relative(gradient, expected[index + 1]) < 2e-6


def test_autocast_changes_nothing(make, device):
    inputs, options = make()
    expected = dcnv3(*inputs, **options)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(dcnv3(*inputs, **options), expected)


@pytest.mark.parametrize(("dtype", "softmax"), [(torch.float32, True), (torch.bfloat16, False)])
def test_operator_obeys_the_rules_of_torch_library(make, dtype, softmax):
    (x, offset, mask), _ = make(dtype=dtype)
    inputs = [x, torch.cat((offset, mask), dim=-1).detach().requires_grad_()]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-2, 1e-2)
    torch.library.opcheck(module.dcnv3, (*inputs, 2, 1, 1, 1, 1.0, False, softmax), atol=atol, rtol=rtol)


@pytest.mark.parametrize("function", [dcnv3, dcnv3_fused])
def test_compiles_without_a_graph_break(make, function):
    inputs, options = make()
    if function is dcnv3_fused:
        inputs = [inputs[0], torch.cat(inputs[1:], dim=-1).detach().requires_grad_()]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for a, e in zip(run(inputs, options, compiled), run(inputs, options, function), strict=True):
        assert relative(a, e) < 1e-6


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"kernel_size": 5, "padding": 2}, "3x3"),
        ({"group_channels": 12}, "12 channels"),
        ({"dtype": torch.float64}, "float64"),
    ],
    ids=["kernel", "channels", "dtype"],
)
def test_what_the_kernels_do_not_take(make, sizes, reason):
    inputs, options = make(**sizes)
    with pytest.raises(ConfigError, match=reason):
        dcnv3(*inputs, **options)


def test_second_derivatives_are_refused(make):
    inputs, options = make()
    (gradient,) = torch.autograd.grad(dcnv3(*inputs, **options).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("size", "groups", "offset_scale"),
    [((120, 160), 4, 1.0), ((60, 80), 8, 1.0), ((15, 20), 32, 1.0), ((120, 160), 10, 2.0), ((15, 20), 80, 2.0)],
    ids=str,
)  # fmt: skip
def test_sizes_of_the_network(make, rounding, size, groups, offset_scale, dtype):
    (x, offset, logits), options = make(
        size, groups=groups, dtype=dtype, point_dtype=dtype, offset_scale=offset_scale
    )
    inputs = [x, torch.cat((offset, logits), dim=-1).detach().requires_grad_()]
    check(inputs, options, 1e-5 + rounding[dtype], dcnv3_fused)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 50 << 30:
        pytest.skip("needs 50 GiB of free memory")
    size, groups = (2, 4096, 4100), 4
    inputs = [torch.randn(*size, n, device="cuda", dtype=torch.bfloat16) for n in (64, groups * 27)]
    grad = torch.randn(*size, 64, device="cuda", dtype=torch.bfloat16)
    options = (groups, 1, 1, 1, 1.0, False, True)
    whole, part = module.dcnv3(*inputs, *options), module.dcnv3(*(t[1:] for t in inputs), *options)
    assert torch.equal(whole[1:], part)
    del whole, part
    whole = module.dcnv3_backward(grad, *inputs, *options)
    part = module.dcnv3_backward(grad[1:], *(t[1:] for t in inputs), *options)
    assert torch.equal(whole[1][1:], part[1])
    last = slice(-64, None)
    torch.testing.assert_close(whole[0][1, last].float(), part[0][0, last].float(), rtol=2**-7, atol=1e-3)
    assert whole[0][1, last].any(dim=-1).all()
