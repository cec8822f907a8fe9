"""DCNv3's kernels on a CUDA device, against the torch path in float64."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import dcnv3, use_backend
from sa2depth.ops.dcnv3 import cuda as module
from sa2depth.ops.dcnv3 import dcnv3_fused

pytestmark = pytest.mark.gpu

NAMES = ("output", "input", "offset", "mask")


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cuda"):
        yield


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(
    size=(17, 31), batch=2, groups=2, group_channels=16, spread=1.0, dtype=torch.float32,
    point_dtype=torch.float32, device="cuda", seed=0, **options,
):  # fmt: skip
    points = options.get("kernel_size", 3) ** 2 - options.get("remove_center", False)
    padding, dilation = options.get("padding", 1), options.get("dilation", 1)
    extent = dilation * (options.get("kernel_size", 3) - 1) + 1
    rows, columns = ((n + 2 * padding - extent) // options.get("stride", 1) + 1 for n in size)
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, device=device, dtype=torch.float64)

    x = draw(batch, *size, groups * group_channels).to(dtype)
    # between whole pixels, where slopes jump and the last bit of a coordinate decides
    offset = (8 * spread * draw(batch, rows, columns, groups * points * 2)).floor() / 8 + 1 / 16
    mask = draw(batch, rows, columns, groups, points)
    mask = (mask if options.get("softmax") else mask.softmax(dim=-1)).flatten(3).to(point_dtype)
    inputs = [t.requires_grad_() for t in (x, offset.to(point_dtype), mask)]
    return inputs, {"groups": groups, **options}


def run(inputs, options, function=dcnv3):
    """Output and gradients for a weighting that depends on nothing but the shape."""
    output = function(*inputs, **options)
    random = torch.Generator(output.device).manual_seed(1)
    weight = torch.randn(output.shape, generator=random, device=output.device, dtype=torch.float32)
    weight = weight.bfloat16().to(output.dtype)  # the same numbers in all types
    return output, *torch.autograd.grad(output, inputs, weight)


def reference(inputs, options, function=dcnv3):
    with use_backend("torch"):
        return run([t.detach().double().requires_grad_() for t in inputs], options, function)


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def check(inputs, options, tolerance=1e-5):
    actual, expected = run(inputs, options), reference(inputs, options)
    errors = {n: relative(a, e) for n, a, e in zip(NAMES, actual, expected, strict=True)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance, errors
    assert [t.dtype for t in actual] == [inputs[0].dtype, *(t.dtype for t in inputs)]


@pytest.mark.parametrize("size", [(1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (61, 79)])
def test_forward_and_gradients(size):
    check(*make(size))


@pytest.mark.parametrize(
    "options",
    [
        {"offset_scale": 2.0},
        {"offset_scale": 0.5, "dilation": 2, "padding": 2},
        {"stride": 2},
        {"padding": 0},
        {"remove_center": True},
        {"softmax": True},
        {"softmax": True, "remove_center": True, "offset_scale": 2.0},
    ],
    ids=str,
)
def test_options(options):
    check(*make(**options))


@pytest.mark.parametrize(("groups", "group_channels"), [(1, 8), (5, 16), (3, 32), (4, 64)])
def test_groups(groups, group_channels):
    check(*make((12, 23), groups=groups, group_channels=group_channels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("groups", "padding"), [(4, 0), (4, 4), (5, 0), (5, 1)])
def test_joined_offsets_and_logits(groups, padding, dtype):
    (x, offset, logits), options = make(groups=groups, point_dtype=dtype, softmax=True)
    del options["softmax"]
    inputs = [x, torch.cat((offset, logits, logits[..., :padding]), dim=-1).detach().requires_grad_()]
    actual, expected = run(inputs, options, dcnv3_fused), reference(inputs, options, dcnv3_fused)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert max(relative(a, e) for a, e in zip(actual, expected, strict=True)) < tolerance
    assert actual[2].dtype == dtype
    assert not actual[2][..., 27 * groups :].any()


def test_slopes_at_whole_pixels_are_those_to_the_right_and_below():
    inputs, options = make()
    with torch.no_grad():
        inputs[1].zero_()
    slopes = run(inputs, options)[2]
    with torch.no_grad():
        inputs[1].fill_(1e-4)
    torch.testing.assert_close(slopes, reference(inputs, options)[2].float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "groups", "offset_scale"),
    [((120, 160), 4, 1.0), ((15, 20), 32, 1.0), ((120, 160), 10, 2.0)],
    ids=["T level 1", "T level 4", "L level 1"],
)
def test_sizes_of_the_network(size, groups, offset_scale):
    check(*make(size, groups=groups, offset_scale=offset_scale))


@pytest.mark.parametrize("spread", [6.0, 200.0])
def test_offsets_out_of_the_window_and_out_of_the_image(spread):
    check(*make((61, 79), spread=spread))


@pytest.mark.parametrize(
    ("dtype", "group_channels"), [(torch.bfloat16, 16), (torch.float16, 16), (torch.bfloat16, 64)]
)
def test_half_precision_input(dtype, group_channels):
    # sums are float32: what is lost is one rounding of the output and of the input's gradient
    inputs, options = make((40, 64), dtype=dtype, group_channels=group_channels)
    actual, expected = run(inputs, options), reference(inputs, options)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, rtol=1.02 * rounding, atol=1e-5)
    assert max(relative(a, e) for a, e in zip(actual[2:], expected[2:], strict=True)) < 1e-5


@pytest.mark.parametrize("point_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_offsets_and_masks(point_dtype):
    inputs, options = make((40, 64), dtype=point_dtype, point_dtype=point_dtype)
    check(inputs, options, tolerance={torch.bfloat16: 4e-3, torch.float16: 5e-4}[point_dtype])


def test_offset_and_mask_of_different_types():
    inputs, options = make((12, 23))
    inputs[2] = inputs[2].detach().half().requires_grad_()
    check(inputs, options, tolerance=5e-4)


def test_offsets_that_are_no_place():
    inputs, options = make()
    with torch.no_grad():
        inputs[1][0, 3, 4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9] * 6)
    actual = run(inputs, options)
    assert all(t.isfinite().all() for t in actual)
    assert not actual[0][0, 3, 4].any()


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_mode_gives_the_same_bits(deterministic, dtype, spread):
    inputs, options = make((60, 80), spread=spread, dtype=dtype)
    first, second = run(inputs, options), run(inputs, options)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with use_backend("torch"):
        torch.use_deterministic_algorithms(False)  # grid_sample has no deterministic backward pass
        expected = reference(inputs, options)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    assert max(relative(a, e) for a, e in zip(first, expected, strict=True)) < tolerance


def test_all_but_the_gradient_of_the_input_always_give_the_same_bits():
    inputs, options = make((60, 80))
    first, second = run(inputs, options), run(inputs, options)
    for index in (0, 2, 3):
        torch.testing.assert_close(first[index], second[index], rtol=0, atol=0)


def test_everything_is_written(deterministic):  # which also fills new memory with NaN
    inputs, options = make()
    assert all(t.isfinite().all() for t in run(inputs, options))


def test_deterministic_mode_shows_what_is_not_finite(deterministic):
    inputs, options = make()
    output = dcnv3(*inputs, **options)
    (gradient,) = torch.autograd.grad(output, inputs[:1], torch.full_like(output, torch.inf))
    assert gradient.isnan().all()


def test_autocast_changes_nothing():
    inputs, options = make()
    with torch.autocast("cuda", torch.bfloat16):
        inside = dcnv3(*inputs, **options)
    torch.testing.assert_close(inside, dcnv3(*inputs, **options), rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"size": (2, 5), "padding": 0}], ids=str)
def test_nothing_to_do(sizes):
    inputs, options = make(**sizes)
    output, *gradients = run(inputs, options)
    assert output.numel() == 0
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not gradients[0].any()


def test_memory_layouts():
    inputs, options = make()
    expected = run(inputs, options)
    strided = [t.detach().repeat_interleave(2, dim=-1)[..., ::2] for t in inputs]
    channels_first = [t.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in inputs]
    shifted = [  # contiguous, but not on a multiple of 16 bytes
        torch.empty(t.numel() + 1, device="cuda")[1:].view(t.shape).copy_(t.detach()) for t in inputs
    ]
    for other in (strided, channels_first, shifted):
        actual = run([t.requires_grad_() for t in other], options)
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            if index == 1:  # added in any order
                assert relative(a, e) < 1e-6
            else:
                torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 50 << 30:
        pytest.skip("needs 50 GiB of free memory")
    size, groups = (2, 4096, 4100), 4

    def draw(last):
        return torch.randn(*size, last, device="cuda", dtype=torch.bfloat16)

    inputs = [draw(64), draw(groups * 27)]
    assert inputs[0].numel() > 2**31
    grad = draw(64)
    options = (groups, 1, 1, 1, 1.0, False, True)
    whole = module.dcnv3(*inputs, *options)
    part = module.dcnv3(*(t[1:] for t in inputs), *options)
    assert torch.equal(whole[1:], part)
    del whole, part
    whole = module.dcnv3_backward(grad, *inputs, *options)
    part = module.dcnv3_backward(grad[1:], *(t[1:] for t in inputs), *options)
    assert torch.equal(whole[1][1:], part[1])
    last = slice(-64, None)
    torch.testing.assert_close(whole[0][1, last].float(), part[0][0, last].float(), rtol=2**-7, atol=1e-3)
    assert whole[0][1, last].any(dim=-1).all()


@pytest.mark.parametrize(("dtype", "softmax"), [(torch.float32, True), (torch.bfloat16, False)])
def test_operator_obeys_the_rules_of_torch_library(dtype, softmax):
    (x, offset, mask), _ = make((9, 14), dtype=dtype)
    inputs = [x, torch.cat((offset, mask), dim=-1).detach().requires_grad_()]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-2, 1e-2)
    torch.library.opcheck(module.dcnv3, (*inputs, 2, 1, 1, 1, 1.0, False, softmax), atol=atol, rtol=rtol)


@pytest.mark.parametrize("function", [dcnv3, dcnv3_fused])
def test_compiles_without_a_graph_break(function):
    inputs, options = make()
    if function is dcnv3_fused:
        inputs = [inputs[0], torch.cat(inputs[1:], dim=-1).detach().requires_grad_()]
    compiled = torch.compile(function, fullgraph=True)
    for a, e in zip(run(inputs, options, compiled), run(inputs, options, function), strict=True):
        assert relative(a, e) < 1e-6


def test_captures_into_a_graph():
    inputs, options = make((40, 64))
    weight = torch.randn_like(inputs[0])

    def step():
        output = dcnv3(*inputs, **options)
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
            assert relative(a, e) < 1e-6


def test_runs_on_the_current_stream():
    inputs, options = make((60, 80))
    inputs = [t.detach() for t in inputs]
    expected = dcnv3(*inputs, **options)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
        inputs[0].mul_(2)
        inputs[0].mul_(0.5)
        actual = dcnv3(*inputs, **options)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    inputs, options = make(device="cuda:1")
    assert torch.cuda.current_device() == 0
    check(inputs, options)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"kernel_size": 5, "padding": 2}, "3x3"),
        ({"group_channels": 12}, "12 channels"),
        ({"dtype": torch.float64}, "float64"),
    ],
    ids=["kernel", "channels", "dtype"],
)
def test_what_the_kernels_do_not_take_runs_in_torch(sizes, reason):
    inputs, options = make((9, 14), **sizes)
    with use_backend("auto"):
        check(inputs, options)
    with pytest.raises(ConfigError, match=reason):
        dcnv3(*inputs, **options)


def test_second_derivatives_are_refused():
    inputs, options = make()
    (gradient,) = torch.autograd.grad(dcnv3(*inputs, **options).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
