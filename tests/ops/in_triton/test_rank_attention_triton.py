"""The Triton kernels of rank-grouped attention, against the torch path in float64."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from sa2depth.errors import ConfigError
from sa2depth.ops import rank_attention
from sa2depth.ops.rank_attention import rank_ranges
from sa2depth.ops.rank_attention import triton as module
from sa2depth.ops.rank_attention.torch import run as run_in_torch
from sa2depth.ops.runtime import triton as machine


def rank_attention_torch(query, key, value, scale):
    return run_in_torch(query, key, value, scale, rank_ranges(key.shape[2]))


@pytest.fixture(autouse=True)
def _bfloat16(device, monkeypatch):
    """Triton 3.6 multiplies matrices of bfloat16 in its interpreter as if their bits were whole numbers."""
    if device.type == "cuda":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        words = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(words.view(np.float32), tl.float32)

    def create_dot(self, a, b, *others):
        return original(self, widened(a), widened(b), *others)

    monkeypatch.setattr(builder, "create_dot", create_dot)


def make(device, keys=21, queries=19, heads=1, batch=1, dim=16, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, n, dim) for n in (queries, keys, keys)]
    draws = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [t.to(device, dtype).requires_grad_() for t in draws]


def token_major(query, key, value):
    """The same values as projections of tokens leave them: queries ``(B, Q, h d)``, keys and values in one tensor."""
    batch, heads, keys, dim = key.shape
    both = torch.stack([t.detach().transpose(1, 2) for t in (key, value)], dim=2).contiguous()
    both = both.view(batch, keys, 2 * heads * dim)
    views = [t.unflatten(-1, (heads, dim)).transpose(1, 2) for t in both.chunk(2, dim=-1)]
    query = query.detach().transpose(1, 2).contiguous().transpose(1, 2)
    return [t.requires_grad_() for t in (query, *views)]


def relative(actual, expected):
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def run(function, inputs, scale):
    """Output and gradients for a weighting that depends on nothing but the shape."""
    output = function(*inputs, scale)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return output, torch.autograd.grad((output * weight.to(output)).sum(), inputs)


def same_bits(first, second):
    for a, b in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def check(inputs, scale=None, tolerance=2e-6, gradient_tolerance=None):
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    reference = [t.detach().double().requires_grad_() for t in inputs]
    expected, expected_gradients = run(rank_attention_torch, reference, scale)
    actual, gradients = run(rank_attention, inputs, scale)
    errors = [relative(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors) < tolerance, errors
    errors = [relative(a, e) for a, e in zip(gradients, expected_gradients, strict=True)]
    assert max(errors) < (gradient_tolerance or tolerance), errors
    assert actual.dtype == inputs[2].dtype
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
    assert actual.transpose(2, 3).is_contiguous()


def without_near_ties(inputs, scale):
    """Leaves out queries that have two scores at the end of a group closer than float32 can tell apart."""
    query, key, value = inputs
    scores = query.detach().double() @ key.detach().double().transpose(-1, -2) * scale
    scores = scores.sort(dim=-1, descending=True)[0]
    ends = [end for _, end in rank_ranges(key.shape[2]) if end < key.shape[2]]
    gaps = torch.stack([scores[..., end - 1] - scores[..., end] for end in ends]).amin(dim=0)
    safe = (gaps > 1e-5 * scores.abs().amax(dim=-1)).flatten(0, 1).all(dim=0)
    assert safe.float().mean() > 0.5
    return [query.detach()[:, :, safe].requires_grad_(), key, value]


@pytest.mark.parametrize("keys", [4, 5, 9, 16, 17, 70])
def test_any_number_of_keys(device, keys):
    check(make(device, keys, queries=5 if keys > 9 else 17))


@pytest.mark.parametrize("dim", [20, 80])
def test_any_width_several_heads_and_images(device, dim):
    check(token_major(*make(device, 33, queries=3, heads=2, batch=2, dim=dim)))


@pytest.mark.parametrize("queries", [40, 70])
def test_parts_of_queries(device, queries, monkeypatch):
    monkeypatch.setattr(module, "_FEWEST_QUERIES", 32)
    check(make(device, 10, queries=queries))


def test_any_layout(device):
    inputs = make(device, 12, queries=3, heads=2)
    expected = run(rank_attention, inputs, 0.4)
    # every second channel of wider tensors, and an address that is no multiple of 16 bytes
    wide = [torch.randn(1, 2, t.shape[2], 32, device=device) for t in inputs]
    strided = [w[..., ::2].copy_(t.detach()) for w, t in zip(wide, inputs, strict=True)]
    shifted = [torch.zeros(t.numel() + 1, device=device)[1:].view(t.shape).copy_(t.detach()) for t in inputs]
    for other in (strided, shifted):
        same_bits(run(rank_attention, [t.requires_grad_() for t in other], 0.4), expected)


def test_gradients_of_any_layout(device):
    inputs = make(device, 12, queries=3, heads=2)
    output = rank_attention(*inputs, 0.4)
    grads = torch.randn(output.shape, device=device), torch.ones((), device=device).expand(output.shape)
    for grad in grads:
        expected = torch.autograd.grad(output, inputs, grad.contiguous(), retain_graph=True)
        turned = grad if grad.stride(-1) == 0 else grad.transpose(2, 3).contiguous().transpose(2, 3)
        actual = torch.autograd.grad(output, inputs, turned, retain_graph=True)
        same_bits((output, actual), (output, expected))


# 2^-9 and 2^-12 are the roundings; the gradient's own on its way in and that of the slopes add to the result's
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-3), (torch.float16, 5e-4)])
def test_half_precision(device, dtype, tolerance):
    if dtype == torch.bfloat16 and device.type == "cpu":
        tolerance = 8e-3  # the interpreter cuts bits off instead of rounding: twice, and always towards zero
    inputs = make(device, 40, dim=16, dtype=dtype)
    check(token_major(*inputs), tolerance=tolerance, gradient_tolerance=2 * tolerance)


def test_mixed_types_are_computed_in_float32(device):
    query, key, value = (t.detach() for t in make(device))
    actual = rank_attention(query, key.bfloat16(), value.bfloat16(), 0.4)
    expected = rank_attention_torch(query.double(), key.bfloat16().double(), value.bfloat16().double(), 0.4)
    assert actual.dtype == torch.bfloat16
    assert relative(actual, expected) < 3e-3


def test_autocast_changes_nothing(device):
    inputs = [t.detach() for t in make(device, queries=3)]
    with torch.autocast(device.type, torch.bfloat16):
        inside = rank_attention(*inputs, 0.4)
    torch.testing.assert_close(inside, rank_attention(*inputs, 0.4), rtol=0, atol=0)


def whole_numbers(device, keys, spread, **options):
    """Inputs whose scores are exact, with many ties; random values."""
    query, key, value = (t.detach() for t in make(device, keys, **options))
    query, key = (query * spread).round().clamp(-3, 3), (key * spread).round().clamp(-3, 3)
    return [t.requires_grad_() for t in (query, key, value)]


def test_membership_is_exact_with_ties(device):
    keys = 37
    query, key, _ = whole_numbers(device, keys, 0.4, dim=37, queries=16)
    value = torch.eye(keys, device=device)[None, None]
    weights = rank_attention(query, key, value, 0.25)
    expected = rank_attention_torch(query.double(), key.double(), value.double(), 0.25)
    assert ((weights > 0) == (expected > 0)).all()
    for weight, (start, end) in zip(weights[1:], rank_ranges(keys), strict=True):
        assert ((weight > 0).sum(dim=-1) == end - start).all()


@pytest.mark.parametrize(("keys", "spread"), [(12, 0.3), (40, 0.7)])
def test_ties_are_broken_as_in_torch(device, keys, spread):
    check(whole_numbers(device, keys, spread, queries=16), scale=0.5)


def test_all_scores_equal(device):
    inputs = make(device, 50, queries=3)
    with torch.no_grad():
        inputs[0].zero_()
    check(inputs)


def test_equal_keys_with_scores_that_are_rounded(device):
    """Groups end inside a class of equal keys; which of them the oracle takes is decided by rounding."""
    inputs = make(device, 41, queries=16)
    with torch.no_grad():
        for tensor in inputs[1:]:
            tensor[:, :, 1::2] = tensor[:, :, :1]
    reference = [t.detach().double().requires_grad_() for t in inputs]
    expected, expected_gradients = run(rank_attention_torch, reference, 0.4)
    actual, gradients = run(rank_attention, inputs, 0.4)
    errors = [relative(actual, expected), relative(gradients[0], expected_gradients[0])]
    for a, e in zip(gradients[1:], expected_gradients[1:], strict=True):
        equal = [torch.cat((g[:, :, :1], g[:, :, 1::2]), dim=2).sum(dim=2) for g in (a, e)]
        errors += [relative(*equal), relative(a[:, :, 2::2], e[:, :, 2::2])]
    assert max(errors) < 3e-6, errors


@pytest.mark.parametrize("case", ["large", "outliers", "exponential", "tiny"])
def test_unusual_scores(device, case):
    query, key, value = (t.detach() for t in make(device, 60, queries=8))
    if case == "large":
        query *= 30
    elif case == "outliers":
        key[:, :, ::30] *= 1e4
    elif case == "exponential":
        key *= torch.exp(torch.linspace(-12, 3, 60, device=device))[:, None]
    else:
        query *= 1e-18
    inputs = [t.requires_grad_() for t in (query, key, value)]
    # the larger a score, the larger the error that it carries into its exponential
    tolerance = {"tiny": 3e-6, "exponential": 1e-5}.get(case, 3e-4)
    # a query that sees one key only has no gradient: what the difference of two roundings leaves, times the key
    check(inputs, 0.4, tolerance, gradient_tolerance=1e-2 if case == "outliers" else tolerance)


def test_not_a_number_ends_and_shows(device):
    query, key, value = (t.detach() for t in make(device, 20, queries=8))
    query[:, :, 3] = torch.nan
    query[:, :, 5] = torch.inf
    output = rank_attention(query, key, value, 0.4)
    assert output[0, :, :, 3].isnan().all()
    assert output[:, :, :, [0, 1, 2, 4, 6, 7]].isfinite().all()
    key[:, :, 7, 0] = torch.nan
    assert rank_attention(query, key, value, 0.4)[0].isnan().all()


@pytest.mark.parametrize("needed", [(0,), (2,)])
def test_some_gradients_only(device, needed):
    inputs = make(device, queries=3)
    expected = run(rank_attention, inputs, 0.4)[1]
    some = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
    output = rank_attention(*some, 0.4)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = torch.autograd.grad((output * weight.to(output)).sum(), [some[i] for i in needed])
    same_bits((output, actual), (output, [expected[i] for i in needed]))


def test_nothing_is_kept_without_gradients(device, monkeypatch):
    inputs = make(device, queries=3)
    kept = []
    operator = module.rank_attention
    monkeypatch.setattr(module, "rank_attention", lambda *a: kept.append(a[-1]) or operator(*a))
    with torch.no_grad():
        without = rank_attention(*inputs, 0.4)
    torch.testing.assert_close(rank_attention(*inputs, 0.4).detach(), without, rtol=0, atol=0)
    assert kept == [False, True]
    output, rows, groups = operator(*inputs, 0.4, [2, 6, 10, 14], False)
    assert rows.numel() == groups.numel() == 0
    with pytest.raises(RuntimeError, match="keep=False"):
        output.sum().backward()


@pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}])
def test_nothing_to_do(device, shape):
    inputs = make(device, **shape)
    output, gradients = run(rank_attention, inputs, 0.4)
    assert output.shape == (5, *inputs[0].shape)
    assert not any(g.any() for g in gradients)


def test_second_derivatives_are_refused(device):
    inputs = make(device, 12, queries=3)
    (gradient,) = torch.autograd.grad(
        rank_attention(*inputs, 0.4).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative on the back end triton"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"dim": 129}, "128 channels, not 129"),
        ({"keys": 3}, "4 to 1024 keys, not 3"),
        ({"keys": 1025}, "not 1025"),
    ],
)
def test_what_the_kernels_cannot_take_is_said(device, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        rank_attention(*make(device, **changes), 0.4)


def test_operator_obeys_the_rules_of_torch_library(device):
    inputs = token_major(*make(device, 12, queries=3, heads=2))
    torch.library.opcheck(module.rank_attention, (*inputs, 0.4, [1, 3, 6, 8], True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
def test_fake_results_have_the_strides_of_real_ones(device, keep):
    inputs = [t.detach() for t in token_major(*make(device, 12, queries=3, heads=2, dtype=torch.float16))]

    def outputs(tensors):
        output, *kept = module.rank_attention(*tensors, 0.4, [1, 3, 6, 8], keep)
        if not keep:
            return [output, *kept]
        ones = torch.ones_like(output)
        return [output, *kept, *module.rank_attention_backward(ones, *tensors, output, *kept, 0.4)]

    real = outputs(inputs)
    with FakeTensorMode() as mode:
        fake = outputs([mode.from_tensor(t) for t in inputs])
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_compiles_without_a_graph_break(device):
    inputs = make(device, 12, queries=3)
    compiled = torch.compile(rank_attention, backend="aot_eager", fullgraph=True)
    same_bits(run(compiled, inputs, 0.4), run(rank_attention, inputs, 0.4))


def test_two_runs_give_the_same_bits(device):
    inputs = make(device, 20, queries=33)
    same_bits(run(rank_attention, inputs, 0.4), run(rank_attention, inputs, 0.4))


def test_tiles_hold_the_keys():
    for keys in range(4, 1025):
        first, second = module._halves(keys)
        assert first & (first - 1) == second & (second - 1) == 0
        assert 16 <= second <= first < max(keys, 17)
        assert keys <= first + second


# ---- sizes of the networks


@pytest.mark.gpu
@pytest.mark.parametrize(("keys", "dim"), [(300, 64), (418, 80), (385, 64), (512, 128), (1024, 64), (37, 20)])
def test_the_sizes_of_the_networks(device, keys, dim):
    inputs = make(device, keys, queries=700, heads=2, batch=2, dim=dim)
    check(token_major(*without_near_ties(inputs, dim**-0.5)), tolerance=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("keys", "dim"), [(300, 64), (418, 80), (512, 128), (1024, 16)])
def test_the_sizes_of_the_networks_in_half_precision(device, dtype, tolerance, keys, dim):
    if dtype == torch.bfloat16 and machine.float32_precision(device) == "ieee":
        pytest.skip("this GPU has no bfloat16")
    inputs = make(device, keys, queries=300, heads=2, batch=2, dim=dim, dtype=dtype)
    check(token_major(*without_near_ties(inputs, dim**-0.5)), tolerance=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [4800, 19200])
def test_large_queries(device, queries):
    inputs = without_near_ties(make(device, 300, queries, dim=64), 0.125)
    check(token_major(*inputs), tolerance=1e-5)
    same_bits(run(rank_attention, inputs, 0.125), run(rank_attention, inputs, 0.125))


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [0.15, 0.7])
def test_ties_at_the_size_of_the_network(device, spread):
    check(whole_numbers(device, 300, spread, queries=129, dim=64), tolerance=1e-5, scale=0.125)


@pytest.mark.gpu
def test_memory_between_and_in_the_passes(device):
    inputs = make(device, 300, queries=2000, heads=2, batch=2, dim=64)
    run(rank_attention, inputs, 0.125)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = rank_attention(*inputs, 0.125)
    assert torch.cuda.memory_allocated() - before < 1.5 * output.nbytes
    output.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 7 * output.nbytes


@pytest.mark.gpu
def test_captures_into_a_graph(device):
    inputs = [t.detach() for t in make(device, 300, queries=129, dim=64)]
    expected = rank_attention(*inputs, 0.125)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rank_attention(*inputs, 0.125)
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)
