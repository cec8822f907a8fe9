"""The operators of the CPU library against the float64 torch path: all code paths, thread counts and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sa2depth.errors import ShapeError
from sa2depth.ops import cpu, dcnv3, gated_conv, rank_attention, selective_scan_2d, use_backend
from sa2depth.ops.dcnv3 import dcnv3_fused
from sa2depth.ops.dcnv3.cpu import dcnv3 as dcnv3_operator
from sa2depth.ops.gated_conv.cpu import run as gated_conv_cpu
from sa2depth.ops.rank_attention import rank_ranges
from sa2depth.ops.rank_attention.cpu import rank_attention as attention_operator
from sa2depth.ops.runtime.cpp import library
from sa2depth.ops.selective_scan.cpu import selective_scan as scan_operator

pytestmark = pytest.mark.skipif(bool(cpu.why_unavailable()), reason=cpu.why_unavailable())


ANY_SHAPE = 1e-5
"""Tolerance where hypothesis picks shapes and seeks the worst."""


@pytest.fixture(params=[(path, threads) for path in cpu.paths() for threads in (1, 2)], ids=str)
def ways(request, monkeypatch):
    """Every code path, with one thread and with two."""
    path, threads = request.param
    monkeypatch.setenv(library.PATH_VARIABLE, path)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def assert_equals_oracle(function, inputs, tolerance=2e-6):
    """Output and all gradients, relative to the largest value; inputs are float32."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    with use_backend("torch"):
        expected = function(*exact)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [t.detach().requires_grad_() for t in inputs]
    with use_backend("cpu"):
        actual = function(*inputs)
    pairs = zip(
        (actual, *torch.autograd.grad(actual, inputs, weight.float())),
        (expected, *torch.autograd.grad(expected, exact, weight)),
        strict=True,
    )
    for index, (own, reference) in enumerate(pairs):
        assert own.shape == reference.shape
        assert own.dtype == torch.float32
        if reference.numel():
            # a gradient that is zero but for rounding is measured against 1e-3
            error = (own - reference).abs().max() / reference.abs().max().clamp(min=1e-3)
            assert error < tolerance, ("output", *(f"gradient {i}" for i in range(9)))[index]


def deformable(size, groups=2, group_channels=16, batch=2, seed=0, **options):
    kernel, stride = options.get("kernel_size", 3), options.get("stride", 1)
    padding, dilation = options.get("padding", 1), options.get("dilation", 1)
    points = kernel * kernel - options.get("remove_center", False)
    rows, columns = ((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in size)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *size, groups * group_channels, generator=random)
    # Odd multiples of 1/64: exact in float32, and no coordinate is a whole number, where the gradient jumps.
    offset = torch.randint(-128, 128, (batch, rows, columns, groups * points * 2), generator=random)
    offset = (2 * offset + 1) / 64
    mask = torch.rand(batch, rows, columns, groups * points, generator=random)
    return (lambda *a: dcnv3(*a, groups=groups, **options)), [x, offset, mask]


def joined(inputs):
    """Offset and mask in one tensor, with one number more."""
    x, offset, mask = inputs
    return [t.requires_grad_() for t in (x, torch.cat((offset, mask, mask[..., :1]), dim=-1))]


DEFORMABLE = {
    "released": {},
    "logits": {"softmax": True},
    "logits without the middle": {"softmax": True, "remove_center": True, "groups": 3},
    "logits of a large kernel": {"softmax": True, "kernel_size": 5, "padding": 2},
    "scaled": {"offset_scale": 2.0},
    "strided": {"stride": 2, "offset_scale": 1.5},
    "dilated": {"dilation": 2, "padding": 2, "offset_scale": 0.5},
    "large": {"kernel_size": 5, "padding": 2},
    "no_center": {"remove_center": True},
    "even": {"kernel_size": 2, "padding": 0},
    "narrow": {"group_channels": 5},
    "wide": {"group_channels": 37, "groups": 1},
    "empty": {"batch": 0},
}


@pytest.mark.parametrize("case", DEFORMABLE)
@pytest.mark.usefixtures("ways")
def test_dcnv3(case):
    assert_equals_oracle(*deformable((6, 9), **DEFORMABLE[case]))


@pytest.mark.parametrize("size", [(16, 16), (4, 16), (16, 3)])
@pytest.mark.usefixtures("ways")
def test_dcnv3_points_a_hairs_breadth_inside(size):
    # 16 - 2^-20 is a float32, 17 - 2^-20 is none: whoever adds 1 first lands on a pixel outside. Offsets are as small
    # as this after the first steps of every training.
    function, (x, offset, mask) = deformable(size)
    assert_equals_oracle(function, [x, torch.full_like(offset, -(2.0**-20)), mask])


@pytest.mark.parametrize(
    "options", [{}, {"groups": 3, "group_channels": 5}, {"remove_center": True}], ids=str
)
@pytest.mark.usefixtures("ways")
def test_dcnv3_of_joined_offsets_and_logits(options):
    _, inputs = deformable((6, 9), **options)
    groups, remove_center = options.get("groups", 2), options.get("remove_center", False)
    assert_equals_oracle(
        lambda *a: dcnv3_fused(*a, groups=groups, remove_center=remove_center), joined(inputs)
    )


@pytest.mark.usefixtures("ways")
def test_dcnv3_logits_of_any_size():
    function, (x, offset, logits) = deformable((5, 6), softmax=True)
    logits = 100 * logits - 50
    logits[0, 0, 0, 3] = -torch.inf
    assert_equals_oracle(function, [x, offset, logits])
    logits[0, 0, 0, 4] = torch.nan
    with use_backend("cpu"):
        out = function(x, offset, logits)
    assert out[0, 0, 0, :16].isnan().all()
    assert out.isnan().sum() == 16


@pytest.mark.usefixtures("ways")
def test_dcnv3_slopes_at_whole_pixels_are_those_to_the_right_and_below():
    function, (x, offset, mask) = deformable((6, 7))
    gradients = []
    for backend, shift in (("cpu", 0.0), ("torch", 1e-7)):
        own = [t.double() if backend == "torch" else t for t in (x, torch.full_like(offset, shift), mask)]
        with use_backend(backend):
            leaf = own[1].requires_grad_()
            gradients.append(torch.autograd.grad(function(own[0], leaf, own[2]).sum(), leaf)[0].double())
    assert gradients[0][:, 0].any()
    torch.testing.assert_close(gradients[0], gradients[1].double(), rtol=1e-4, atol=1e-5)


def test_dcnv3_far_and_undefined_points_read_nothing():
    function, (x, offset, mask) = deformable((5, 6))
    offset[0, 0, 0, :6] = torch.tensor([1e30, 0.0, -1e30, 3.0, torch.inf, torch.nan])
    x.requires_grad_()
    with use_backend("cpu"):
        out = function(x, offset, mask)
        out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.integers(1, 35),
    st.integers(1, 3),
    st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 2.75]),
)
def test_dcnv3_of_any_shape(size, groups, group_channels, batch, scale):
    assert_equals_oracle(
        *deformable(size, groups, group_channels, batch, offset_scale=scale), tolerance=ANY_SHAPE
    )


def attention(queries, keys, dim=16, heads=2, batch=2, seed=0):
    """Inputs of which no two scores in a row are so close that float32 cannot rank them."""
    random = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(batch, heads, n, dim, generator=random) for n in (queries, keys, keys))
    scores = (query.double() @ key.double().transpose(-1, -2)).sort(dim=-1)[0]
    safe = (scores.diff(dim=-1).amin(dim=-1) > 2e-5 * dim**0.5).all(dim=1).all(dim=0)
    assert safe.any()
    return (lambda *a: rank_attention(*a, 0.25)), [query[:, :, safe], key, value]


@pytest.mark.parametrize(("queries", "keys"), [(1, 4), (33, 5), (40, 9), (70, 10), (130, 33), (200, 64)])
@pytest.mark.parametrize("dim", [64, 80, 7])
@pytest.mark.usefixtures("ways")
def test_rank_attention(queries, keys, dim):
    assert_equals_oracle(*attention(queries, keys, dim, batch=1), tolerance=5e-6)


@pytest.mark.parametrize("keys", [300, 385, 418])
@pytest.mark.usefixtures("ways")
def test_rank_attention_of_the_released_sizes(keys):
    function, (query, key, value) = attention(400, keys, 64, heads=1, batch=1)
    assert query.shape[2] > 100
    assert_equals_oracle(function, [query, key, value], tolerance=5e-6)


def test_rank_attention_sums_many_queries_in_parts():
    assert_equals_oracle(*attention(2500, 12, heads=1, batch=1), tolerance=5e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 80), st.integers(4, 40), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2))
def test_rank_attention_of_any_shape(queries, keys, dim, heads, batch):
    random = torch.Generator().manual_seed(0)
    # scores are multiples of 1/8 and exact in float32: many are equal, none is nearly so
    query = torch.randint(-2, 3, (batch, heads, queries, dim), generator=random) / 2
    key = torch.randint(-1, 2, (batch, heads, keys, dim), generator=random) / 2
    value = torch.randn(batch, heads, keys, dim, generator=random)
    assert_equals_oracle(lambda *a: rank_attention(*a, 0.5), [query, key, value], tolerance=ANY_SHAPE)


@pytest.mark.parametrize("keys", [4, 7, 10, 30, 64, 300])
@pytest.mark.usefixtures("ways")
def test_ties_are_broken_by_index_with_exact_counts(keys):
    random = torch.Generator().manual_seed(0)
    # few different values, negative, zero of both signs and positive: whole groups are ties
    score = torch.tensor([-1.5, -0.0, 0.0, 2.0, 2.0])[torch.randint(0, 5, (keys,), generator=random)]
    query, key = torch.ones(1, 1, 3, keys), torch.zeros(1, 1, keys, keys)
    key[0, 0, :, 0] = score
    with use_backend("cpu"):
        groups = rank_attention(query, key, torch.eye(keys)[None, None], 1.0)[1:, 0, 0, 0] > 0
    order = score.sort(descending=True, stable=True)[1]
    for group, (start, end) in zip(groups, rank_ranges(keys), strict=True):
        assert set(group.nonzero().flatten().tolist()) == set(order[start:end].tolist())


@pytest.mark.parametrize("spread", [0.0, 1e-38, 1e-20, 1e20, 3e37])
def test_scores_of_any_magnitude(spread):
    random = torch.Generator().manual_seed(0)
    query, key = torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 40, 4)
    key[0, 0, :, 0] = spread * torch.linspace(-1, 1, 40)[torch.randperm(40, generator=random)]
    inputs = (query, key, torch.randn(1, 1, 40, 4, generator=random), 1.0)
    with use_backend("cpu"):
        actual = rank_attention(*inputs)
    with use_backend("torch"):
        torch.testing.assert_close(actual, rank_attention(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3.4e38])
def test_a_row_with_an_undefined_score_is_nan_and_no_other(bad):
    _, (query, key, value) = attention(50, 20, heads=1, batch=1)
    query[0, 0, 3] = bad
    query.requires_grad_()
    with use_backend("cpu"):
        out = rank_attention(query, key, value, 1.0)
        out[:, :, :, :3].sum().backward()
    assert out[..., 3, :].isnan().all()
    assert out[..., :3, :].isfinite().all()
    assert out[..., 4:, :].isfinite().all()
    assert query.grad[0, 0, :3].isfinite().all()


def test_fewer_than_four_keys_run_in_torch():
    query, key, value = (torch.randn(1, 1, n, 4) for n in (5, 3, 3))
    assert rank_attention(query, key, value, 1.0).isfinite().all()


def scan(size, batch=2, channels=5, states=3, rank=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, channels, *size),
        (4, rank + 2 * states, channels),
        (4, channels, rank),
        (4, channels),
        (4 * channels, states),
        (4 * channels,),
    ]
    x, project, dt_weight, dt_bias, a_log, d_skip = (torch.randn(s, generator=random) for s in shapes)
    return [x, project * channels**-0.5, dt_weight * rank**-0.5, dt_bias - 1, 0.3 * a_log, d_skip]


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (9, 1), (1, 1), (8, 8), (11, 23)])
@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 40, "states": 16, "rank": 16}, {"channels": 17, "states": 64, "rank": 1}],
    ids=str,
)
@pytest.mark.usefixtures("ways")
def test_selective_scan(size, options):
    assert_equals_oracle(selective_scan_2d, scan(size, **options))


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 3),
    st.integers(1, 50),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_selective_scan_of_any_shape(size, batch, channels, states, rank):
    assert_equals_oracle(selective_scan_2d, scan(size, batch, channels, states, rank), tolerance=ANY_SHAPE)


def test_long_memory_does_not_drift():
    """Decays of 0.9999 over 4,000 tokens: a bias of the exponential would show."""
    inputs = scan((40, 100), batch=1, channels=16, states=16, rank=4)
    inputs[3] = torch.full_like(inputs[3], -9.0)
    inputs[2] *= 0.01
    assert_equals_oracle(selective_scan_2d, inputs, tolerance=1e-5)


def test_strong_decay_stays_finite():
    inputs = scan((20, 30))
    inputs[3] = torch.full_like(inputs[3], 200.0)
    assert_equals_oracle(selective_scan_2d, inputs, tolerance=1e-5)


def test_large_states_and_ranks_run_in_torch():
    assert selective_scan_2d(*scan((3, 4), states=65)).isfinite().all()


def gate(size, channels=8, batch=2):
    random = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *size), (channels, 4, 3, 3), (channels,)
    return [0.3 * torch.randn(shape, generator=random) for shape in shapes]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (4, 16), (3, 32), (7, 33), (2, 65)])
@pytest.mark.parametrize("options", [{}, {"channels": 20, "batch": 1}, {"batch": 0}], ids=str)
@pytest.mark.usefixtures("ways")
def test_gated_conv(size, options):
    inputs = gate(size, **options)
    with use_backend("cpu"):
        actual = gated_conv(*inputs)
        strided = gated_conv(inputs[0].transpose(2, 3).contiguous().transpose(2, 3), *inputs[1:])
    expected = gated_conv(*(t.double() for t in inputs))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(strided, actual, rtol=0, atol=0)


def test_gated_conv_trains_in_torch():
    inputs = [t.requires_grad_() for t in gate((4, 5))]
    assert torch.autograd.gradcheck(gated_conv, [t.detach().double().requires_grad_() for t in inputs])
    with use_backend("cpu"):
        gated_conv(*inputs).sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


def test_gated_conv_names_wrong_shapes():
    x, kernel, bias = gate((4, 5))
    with pytest.raises(ShapeError, match="multiple of 4"):
        gated_conv(x[:, :6], kernel, bias)
    with pytest.raises(ShapeError, match=r"\(8, 3, 3, 3\)"):
        gated_conv(x, kernel[:, :3], bias)


INPUTS = {
    "dcnv3": lambda: deformable((7, 8)),
    "rank_attention": lambda: attention(60, 20),
    "selective_scan": lambda: (selective_scan_2d, scan((6, 7), channels=16)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_strided_inputs_and_gradients(name):
    """Transposed, sliced and expanded memory gives the same numbers."""
    function, inputs = INPUTS[name]()
    strange = [
        torch.stack((t, t + 1), dim=-1).transpose(0, -2).contiguous().transpose(0, -2)[..., 0] for t in inputs
    ]
    assert not any(t.is_contiguous() for t in strange)
    results = []
    with use_backend("cpu"):
        for tensors in (inputs, strange):
            leaves = [t.detach().requires_grad_() for t in tensors]
            out = function(*leaves)
            results.append((out, *torch.autograd.grad(out.sum(), leaves)))  # an expanded gradient
    for plain, strided in zip(*results, strict=True):
        torch.testing.assert_close(strided, plain, rtol=0, atol=0)


def test_channels_last_maps_are_scanned():
    inputs = scan((6, 7), channels=16)
    expected = selective_scan_2d(*inputs)
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(selective_scan_2d(*inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", INPUTS)
def test_repeatable_to_the_last_bit(name):
    function, inputs = INPUTS[name]()
    with use_backend("cpu"):
        leaves = [t.requires_grad_() for t in inputs]
        first, second = (torch.autograd.grad(function(*leaves).square().sum(), leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", INPUTS)
def test_bfloat16_is_computed_in_float32(name):
    function, inputs = INPUTS[name]()
    inputs = [t.bfloat16() for t in inputs]
    with use_backend("cpu"):
        actual = function(*inputs)
    with use_backend("torch"):
        expected = function(*inputs)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", INPUTS)
def test_second_derivatives_are_refused(name):
    function, inputs = INPUTS[name]()
    leaves = [t.requires_grad_() for t in inputs]
    with use_backend("cpu"):
        (gradient,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[:1], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()


def test_backward_of_the_scan_without_states_is_refused():
    y, _ = scan_operator(*scan_arguments(keep_states=False))
    with pytest.raises(RuntimeError, match="keep_states=False"):
        y.sum().backward()


def scan_arguments(keep_states=True):
    x, project, *weights = scan((5, 14), channels=16)
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    projected = nn.functional.linear(tokens, project.flatten(0, 1))
    return (*(t.requires_grad_() for t in (tokens, projected, *weights)), 5, keep_states)


OPERATORS = {
    "dcnv3": (
        dcnv3_operator,
        lambda: (*joined(deformable((4, 5))[1]), 2, 3, 1, 1, 1, 1.0, False, True),
    ),
    "rank_attention": (
        attention_operator,
        lambda: (*(t.requires_grad_() for t in attention(40, 20)[1]), 0.25, [2, 6, 10, 14]),
    ),
    "selective_scan": (scan_operator, scan_arguments),
    "gated_conv": (gated_conv_cpu, lambda: gate((4, 5))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_obey_the_rules_of_torch_library(name):
    operator, arguments = OPERATORS[name]
    torch.library.opcheck(operator, arguments(), atol=1e-5, rtol=1e-4)


class Tiny(nn.Module):
    """All three operators behind each other."""

    def __init__(self):
        super().__init__()
        self.offset, self.mask = nn.Linear(16, 18), nn.Linear(16, 9)
        for index, weight in enumerate(scan((1, 1), channels=16, states=16, rank=4)[1:]):
            self.register_parameter(f"scan{index}", nn.Parameter(weight))

    def forward(self, x):
        sampled = dcnv3(x, self.offset(x), self.mask(x).softmax(-1), groups=1)
        tokens = sampled.flatten(1, 2)[:, None]
        attended = rank_attention(tokens, tokens[:, :, ::2], tokens[:, :, ::2], 0.25).sum(dim=0)
        features = attended[:, 0].transpose(1, 2).reshape(x.shape[0], 16, *x.shape[1:3])
        return selective_scan_2d(features, self.scan0, self.scan1, self.scan2, self.scan3, self.scan4)


def test_whole_models_compile_into_one_graph():
    torch.manual_seed(0)
    model, x = Tiny(), torch.randn(2, 5, 6, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with use_backend("cpu"):
        expected, actual = model(x), compiled(x)
        torch.testing.assert_close(actual, expected)
        gradients = [
            torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (expected, actual)
        ]
    for eager, graph in zip(*gradients, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-4, atol=1e-5)
