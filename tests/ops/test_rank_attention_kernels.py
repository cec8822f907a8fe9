"""The CUDA kernels of rank-grouped attention, run on the CPU by an emulator: the sources of csrc/, thread by thread."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sa2depth.ops.rank_attention import cuda as module
from sa2depth.ops.rank_attention import rank_ranges
from sa2depth.ops.rank_attention.torch import run as run_in_torch


def rank_attention_torch(query, key, value, scale):
    return run_in_torch(query, key, value, scale, rank_ranges(key.shape[2]))


@pytest.fixture(autouse=True)
def emulated(emulate, monkeypatch):
    """The launches of a test, which run on the CPU, with their grids."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    return emulate(module)


def make(keys, queries=19, heads=1, batch=1, dim=16, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, n, dim) for n in (queries, keys, keys)]
    return [
        torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def attend(query, key, value, scale=0.4):
    return module.run(query, key, value, scale, rank_ranges(key.shape[2]), None)


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def run(function, inputs, scale):
    output = function(*inputs, scale)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return output, torch.autograd.grad((output * weight.to(output.dtype)).sum(), inputs)


def check(inputs, scale=0.4, tolerance=3e-6, gradient_tolerance=None):
    reference = [t.detach().double().requires_grad_() for t in inputs]
    actual, gradients = run(attend, inputs, scale)
    expected, expected_gradients = run(rank_attention_torch, reference, scale)
    assert actual.dtype == inputs[2].dtype
    errors = [relative(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors) < tolerance, errors
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
    errors = [relative(a, e) for a, e in zip(gradients, expected_gradients, strict=True)]
    assert max(errors) < (gradient_tolerance or tolerance), errors


@pytest.mark.parametrize("keys", [4, 5, 9, 10, 31, 32, 33, 70])
def test_any_number_of_keys(keys, emulated):
    check(make(keys))
    assert [name for name, _ in emulated] == [
        "rank_attention_forward",
        "rank_attention_backward_queries",
        "rank_attention_backward_keys",
    ]


@pytest.mark.parametrize(("keys", "dim"), [(300, 64), (418, 80), (512, 16)])
def test_the_sizes_of_the_networks(keys, dim):
    check(make(keys, queries=5, dim=dim), scale=dim**-0.5, tolerance=5e-6)


def test_the_widest_heads():
    check(make(20, queries=3, dim=128), scale=128**-0.5)


def test_several_heads_and_images():
    check(make(40, queries=37, heads=3, batch=2))


def token_major(query, key, value):
    """The same values as projections of tokens leave them: queries ``(B, Q, h d)``, keys and values in one tensor."""
    batch, heads, keys, dim = key.shape
    both = torch.stack([t.detach().transpose(1, 2) for t in (key, value)], dim=2).contiguous()
    both = both.view(batch, keys, 2 * heads * dim)
    views = [t.unflatten(-1, (heads, dim)).transpose(1, 2) for t in both.chunk(2, dim=-1)]
    query = query.detach().transpose(1, 2).contiguous().transpose(1, 2)
    return [t.requires_grad_() for t in (query, *views)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_major_views_are_taken_without_a_copy(dtype, monkeypatch):
    inputs = make(40, queries=35, heads=2, batch=2, dim=48, dtype=dtype)
    expected = run(attend, inputs, 0.4)
    views = token_major(*inputs)
    copies = []
    for name in ("contiguous", "clone"):
        original = getattr(Tensor, name)

        def copy(tensor, *a, original=original, **k):
            if (result := original(tensor, *a, **k)).data_ptr() != tensor.data_ptr():
                copies.append(tensor.shape)
            return result

        monkeypatch.setattr(Tensor, name, copy)
    output = attend(*views)
    assert output.transpose(2, 3).is_contiguous()
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for grad in (weight.to(dtype), weight.to(dtype).transpose(2, 3).contiguous().transpose(2, 3)):
        copies.clear()
        gradients = torch.autograd.grad(output, views, grad, retain_graph=True)
        assert not copies
        assert all(g.transpose(1, 2).is_contiguous() for g in gradients)
        for a, e in zip((output, *gradients), (expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_any_layout():
    inputs = make(40, heads=2, dim=32)
    expected = run(attend, inputs, 0.4)
    # every second channel of wider tensors, and an address that is no multiple of 16 bytes
    wide = [torch.randn(1, 2, t.shape[2], 64) for t in inputs]
    strided = [w[..., ::2].copy_(t.detach()).requires_grad_() for w, t in zip(wide, inputs, strict=True)]
    shifted = [
        torch.randn(t.numel() + 1)[1:].view(t.shape).copy_(t.detach()).requires_grad_() for t in inputs
    ]
    for other in (strided, shifted):
        actual = run(attend, other, 0.4)
        for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("processors", [1, 100])
def test_any_number_of_parts(processors, emulated, monkeypatch):
    monkeypatch.setattr(module, "multiprocessors", lambda device: processors)
    monkeypatch.setattr(module, "_FEWEST_QUERIES", 16)
    check(make(70, queries=53))
    # 53 queries do not make 3 equal parts of whole tiles: 2 of 32
    assert emulated[-1] == ("rank_attention_backward_keys", (2, {1: 2, 100: 2}[processors], 1))


# 2^-9 and 2^-12 are the roundings of the two types; weights are rounded to 2^-12
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize(("keys", "dim"), [(60, 16), (20, 48), (130, 64), (70, 80), (300, 64)])
def test_half_precision(dtype, tolerance, keys, dim):
    inputs = make(keys, queries=33 if keys < 300 else 5, dim=dim, dtype=dtype)
    # the gradient's own rounding on its way in adds to that of the result
    check(inputs, scale=dim**-0.5, tolerance=tolerance, gradient_tolerance=2 * tolerance)


def test_mixed_types_are_computed_in_float32():
    query, key, value = (t.detach() for t in make(30))
    actual = attend(query, key.bfloat16(), value.bfloat16())
    expected = rank_attention_torch(query.double(), key.bfloat16().double(), value.bfloat16().double(), 0.4)
    assert actual.dtype == torch.bfloat16
    assert relative(actual, expected) < 3e-3


def whole_numbers(keys, spread, **options):
    """Inputs whose scores are exact, with many ties; random values."""
    query, key, value = (t.detach() for t in make(keys, **options))
    query, key = (query * spread).round().clamp(-3, 3), (key * spread).round().clamp(-3, 3)
    return [t.requires_grad_() for t in (query, key, value)]


@pytest.mark.parametrize("spread", [0.15, 0.3, 0.7])
@pytest.mark.parametrize("keys", [12, 64, 301])
def test_ties_are_broken_as_in_torch(keys, spread):
    check(whole_numbers(keys, spread, queries=17), scale=0.5)


def test_equal_keys():
    inputs = make(65)
    with torch.no_grad():
        # A class across several groups, as from keys that were sampled at the same point of the border. The oracle's
        # matrix product rounds equal columns differently: which of them it takes must not matter.
        for tensor in inputs[1:]:
            tensor[:, :, 1::2] = tensor[:, :, :1]
    reference = [t.detach().double().requires_grad_() for t in inputs]
    actual, gradients = run(attend, inputs, 0.4)
    expected, expected_gradients = run(rank_attention_torch, reference, 0.4)
    assert relative(actual, expected) < 3e-6
    assert relative(gradients[0], expected_gradients[0]) < 3e-6
    for a, e in zip(gradients[1:], expected_gradients[1:], strict=True):
        equal = [torch.cat((g[:, :, :1], g[:, :, 1::2]), dim=2).sum(dim=2) for g in (a, e)]
        assert relative(*equal) < 3e-6
        assert relative(a[:, :, 2::2], e[:, :, 2::2]) < 3e-6


def test_all_scores_equal():
    inputs = make(50)
    with torch.no_grad():
        inputs[0].zero_()
    check(inputs)


def test_membership_is_exact():
    keys = 48
    query, key, _ = whole_numbers(keys, 0.4, dim=48)
    weights = attend(query, key, torch.eye(keys)[None, None])
    expected = rank_attention_torch(query, key, torch.eye(keys)[None, None], 0.4)
    assert ((weights > 0) == (expected > 0)).all()
    counts = (weights[1:] > 0).sum(dim=-1)
    for count, (start, end) in zip(counts, rank_ranges(keys), strict=True):
        assert (count == end - start).all()


@pytest.mark.parametrize("case", ["large", "outliers", "two clusters", "exponential", "tiny"])
def test_unusual_scores(case):
    query, key, value = (t.detach() for t in make(90))
    if case == "large":
        query *= 30
    elif case == "outliers":
        key[:, :, ::30] *= 1e4
    elif case == "two clusters":
        key[:, :, ::2] += 20 * query[:, :, :1]
    elif case == "exponential":
        key *= torch.exp(torch.linspace(-12, 3, 90))[:, None]
    else:
        query *= 1e-18
    inputs = [t.requires_grad_() for t in (query, key, value)]
    # the larger a score, the larger the error that it carries into its exponential
    tolerance = {"tiny": 3e-6, "exponential": 1e-5}.get(case, 3e-4)
    # A query that sees one key only has no gradient: what the difference of two roundings leaves, times the key.
    check(inputs, tolerance=tolerance, gradient_tolerance=1e-2 if case == "outliers" else tolerance)


def test_not_a_number_ends_and_shows():
    query, key, value = (t.detach() for t in make(40))
    query[:, :, 3] = torch.nan
    query[:, :, 5] = torch.inf
    key[:, :, 7, 0] = torch.nan
    output = attend(query, key, value)
    assert output[0].isnan().all()
    broken = make(40)
    with torch.no_grad():
        broken[0][:, :, 3] = torch.nan
    output = attend(*broken)
    assert output[0, :, :, 3].isnan().all()
    assert output[:, :, :, [0, 1, 2, 4, 5]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bits_in_whatever_order_threads_run(dtype, monkeypatch):
    inputs = make(70, queries=40, dim=32, dtype=dtype)
    first = run(attend, inputs, 0.4)
    monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
    second = run(attend, inputs, 0.4)
    for a, b in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_nothing_is_kept_without_gradients(monkeypatch):
    inputs = make(20)
    kept = []
    operator = module.rank_attention
    monkeypatch.setattr(module, "rank_attention", lambda *a: kept.append(a[-1]) or operator(*a))
    with torch.no_grad():
        without = attend(*inputs)
    attend(*(t.detach() for t in inputs))
    torch.testing.assert_close(attend(*inputs).detach(), without, rtol=0, atol=0)
    assert kept == [False, False, True]


def operator_arguments(views=False, keep=True, dtype=torch.float32):
    inputs = make(20, queries=9, heads=2, dtype=dtype)
    return (*(token_major(*inputs) if views else inputs), 0.4, [2, 6, 10, 14], keep)


@pytest.mark.parametrize("views", [False, True])
def test_operator_obeys_the_rules_of_torch_library(views):
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(module.rank_attention, operator_arguments(views), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_results_have_the_strides_of_real_ones(dtype, keep):
    query, key, value, scale, bounds, _ = operator_arguments(views=True, dtype=dtype)
    tensors = [t.detach() for t in (query, key, value)]
    output, rows = module.rank_attention(*tensors, scale, bounds, keep)
    real = [output, rows]
    if keep:
        real += module.rank_attention_backward(torch.ones_like(output), *tensors, output, rows, scale)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in tensors]
        fake = list(module.rank_attention(*fakes, scale, bounds, keep))
        if keep:
            fake += module.rank_attention_backward(torch.ones_like(fake[0]), *fakes, *fake, scale)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_no_query_no_launch(emulated):
    inputs = make(20, queries=0)
    output, gradients = run(attend, inputs, 0.4)
    assert output.shape == (5, 1, 1, 0, 16)
    assert not any(g.any() for g in gradients)
    assert not emulated


def test_second_derivatives_are_refused():
    inputs = make(12)
    (gradient,) = torch.autograd.grad(attend(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_backward_of_an_inference_result_is_refused():
    output, _ = module.rank_attention(*operator_arguments(keep=False))
    with pytest.raises(RuntimeError, match="keep=False"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "on cpu"),
        ({"dtype": torch.float64}, "float64"),
        ({"dim": 24}, "16, 32 ... 128 channels, not 24"),
        ({"keys": 3}, "4 to 512 keys, not 3"),
        ({"keys": 513}, "not 513"),
        ({"queries": 0}, "shape"),
    ],
)
def test_what_the_kernels_cannot_take_is_said(changes, reason, monkeypatch):
    inputs = make(**{"keys": 20, **changes})
    if changes:
        monkeypatch.setattr(Tensor, "is_cuda", True)
    assert reason in module.why_not(*inputs, 0.4, rank_ranges(inputs[1].shape[2]), None)
