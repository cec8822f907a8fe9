"""The kernels of rank-grouped attention on a CUDA device, against the torch path in float64."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import rank_attention, use_backend
from sa2depth.ops.rank_attention import cuda as module
from sa2depth.ops.rank_attention import rank_ranges
from sa2depth.ops.rank_attention.torch import run as run_in_torch


def rank_attention_torch(query, key, value, scale):
    return run_in_torch(query, key, value, scale, rank_ranges(key.shape[2]))


pytestmark = pytest.mark.gpu

NAMES = ("query", "key", "value")


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cuda"):
        yield


def make(keys=300, queries=129, heads=2, batch=2, dim=64, dtype=torch.float32, device="cuda", seed=0):
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


def without_near_ties(inputs, scale):
    """Leaves out queries that have two scores at the end of a group closer than float32 can tell apart."""
    query, key, value = inputs
    scores = (query.detach().double() @ key.detach().double().transpose(-1, -2) * scale).sort(
        dim=-1, descending=True
    )[0]
    ends = [end for _, end in rank_ranges(key.shape[2]) if end < key.shape[2]]
    gaps = torch.stack([scores[..., end - 1] - scores[..., end] for end in ends]).amin(dim=0)
    safe = (gaps > 1e-5 * scores.abs().amax(dim=-1)).flatten(0, 1).all(dim=0)
    assert safe.float().mean() > 0.5
    kept = query.detach()[:, :, safe].contiguous()
    return [kept.requires_grad_(), key, value]


def check(inputs, tolerance, scale=None):
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    reference = [t.detach().double().requires_grad_() for t in inputs]
    expected, expected_gradients = run(rank_attention_torch, reference, scale)
    actual, gradients = run(rank_attention, inputs, scale)
    errors = {f"output {o}": relative(actual[o], expected[o]) for o in range(5)}
    errors |= {
        name: relative(*pair) for name, *pair in zip(NAMES, gradients, expected_gradients, strict=True)
    }
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance, errors
    assert actual.dtype == inputs[2].dtype
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]


@pytest.mark.parametrize("queries", [1, 31, 129, 700])
def test_forward_and_gradients(queries):
    check(without_near_ties(make(queries=queries), 0.125), tolerance=1e-5)


@pytest.mark.parametrize(("keys", "dim"), [(418, 80), (37, 16), (5, 16), (512, 128)])
def test_other_sizes(keys, dim):
    check(without_near_ties(make(keys, queries=70, dim=dim), dim**-0.5), tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_major_views(dtype):
    inputs = make(dtype=dtype)
    expected = run(rank_attention, inputs, 0.125)
    actual = run(rank_attention, token_major(*inputs), 0.125)
    assert actual[0].transpose(2, 3).is_contiguous()
    assert all(g.transpose(1, 2).is_contiguous() for g in actual[1])
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_token_major_gradients_of_the_output():
    inputs = token_major(*make())
    output = rank_attention(*inputs, 0.125)
    grad = torch.randn(output.shape, device="cuda")
    expected = torch.autograd.grad(output, inputs, grad, retain_graph=True)
    turned = grad.transpose(2, 3).contiguous().transpose(2, 3)
    for a, e in zip(torch.autograd.grad(output, inputs, turned), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_the_size_of_the_network():
    inputs = without_near_ties(make(queries=4800, heads=1, batch=1), 0.125)
    check(token_major(*inputs), tolerance=1e-5)


def test_groups_are_those_of_float32():
    """Near ties included: at most as many keys are in another group as float32 scores cannot tell apart."""
    query, key, value = (t.detach() for t in make(queries=2000, heads=1, batch=1))
    expected = rank_attention_torch(query.double(), key.double(), value.double(), 0.125)
    actual = rank_attention(query, key, value, 0.125)
    moved = ((actual - expected).abs().amax(dim=-1) > 1e-3).float().mean(dim=-1).flatten()
    print("queries with a key in another group", moved.tolist())
    assert moved[0] == 0
    assert moved.max() < 5e-3


def whole_numbers(keys, spread, **options):
    """Inputs whose scores are exact in any order of summation, with many ties; random values."""
    query, key, value = (t.detach() for t in make(keys, **options))
    query, key = (query * spread).round().clamp(-3, 3), (key * spread).round().clamp(-3, 3)
    return [t.requires_grad_() for t in (query, key, value)]


@pytest.mark.parametrize("spread", [0.15, 0.3, 0.7])
def test_ties_are_broken_as_in_torch(spread):
    check(whole_numbers(300, spread), tolerance=1e-5, scale=0.125)
    check(whole_numbers(37, spread, dim=16), tolerance=1e-5, scale=0.5)


def test_equal_keys_with_scores_that_are_rounded():
    """Groups end inside a class of equal keys: the backward pass must find the same scores again, bit by bit."""
    inputs = make(queries=64)
    with torch.no_grad():
        for tensor in inputs[1:]:
            tensor[:, :, 1::2] = tensor[:, :, :1]
    reference = [t.detach().double().requires_grad_() for t in inputs]
    actual, gradients = run(rank_attention, inputs, 0.125)
    expected, expected_gradients = run(rank_attention_torch, reference, 0.125)
    errors = [relative(actual, expected), relative(gradients[0], expected_gradients[0])]
    for a, e in zip(gradients[1:], expected_gradients[1:], strict=True):
        # which of the equal keys are taken is decided by rounding in the oracle's matrix product
        equal = [torch.cat((g[:, :, :1], g[:, :, 1::2]), dim=2).sum(dim=2) for g in (a, e)]
        errors += [relative(*equal), relative(a[:, :, 2::2], e[:, :, 2::2])]
    print([f"{error:.1e}" for error in errors])
    assert max(errors) < 1e-5


def test_membership_is_exact():
    keys = 300
    query, key, _ = whole_numbers(keys, 0.3, batch=1, heads=1)
    for start in range(0, keys, 64):
        columns = min(64, keys - start)
        value = torch.zeros_like(key)
        value[0, 0, range(start, start + columns), range(columns)] = 1
        actual = rank_attention(query, key, value, 0.125) > 0
        expected = rank_attention_torch(query.double(), key.double(), value.double(), 0.125) > 0
        assert (actual == expected).all()


def test_all_scores_equal():
    inputs = make(queries=40)
    with torch.no_grad():
        inputs[0].zero_()
    # every query's scores are 0: groups are the first keys, the next ...
    check(inputs, tolerance=1e-5)


@pytest.mark.parametrize("factor", [30.0, 1e-18])
def test_large_and_tiny_scores(factor):
    inputs = make(queries=64)
    with torch.no_grad():
        inputs[0].mul_(factor)
    # scores of some hundreds carry their own rounding into the exponentials
    check(without_near_ties(inputs, 0.125), tolerance=3e-4)


def test_not_a_number_ends_and_shows():
    query, key, value = (t.detach() for t in make(queries=64))
    query[:, :, 3] = torch.nan
    query[:, :, 5] = torch.inf
    output = rank_attention(query, key, value, 0.125)
    assert output[0, :, :, 3].isnan().all()
    others = [q for q in range(64) if q not in (3, 5)]
    assert output[:, :, :, others].isfinite().all()
    key[:, :, 7, 0] = torch.nan
    assert rank_attention(query, key, value, 0.125)[0].isnan().all()


# roundings are 2^-9 and 2^-12; the gradients of the output are rounded on their way in, too
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keys": 418, "dim": 80},
        {"keys": 37, "dim": 16},
        {"keys": 512, "dim": 128},
        {"dim": 48, "heads": 3},
    ],
)
def test_half_precision(dtype, tolerance, options):
    inputs = make(dtype=dtype, **options)
    scale = inputs[0].shape[-1] ** -0.5
    check(token_major(*without_near_ties(inputs, scale)), tolerance=tolerance)


def test_groups_of_half_precision_inputs_are_those_of_float32():
    narrow = [t.detach() for t in make(queries=2000, heads=1, batch=1, dtype=torch.bfloat16)]
    expected = rank_attention_torch(*(t.double() for t in narrow), 0.125)
    actual = rank_attention(*narrow, 0.125)
    assert max(relative(a, e) for a, e in zip(actual, expected, strict=True)) < 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_equal_keys_in_half_precision(dtype):
    """The backward pass, where keys are the left factors, must find the forward pass's scores bit by bit."""
    inputs = make(queries=200, dtype=dtype)
    with torch.no_grad():
        for tensor in inputs[1:]:
            tensor[:, :, 1::2] = tensor[:, :, :1]
    reference = [t.detach().double().requires_grad_() for t in inputs]
    _, gradients = run(rank_attention, inputs, 0.125)
    _, expected = run(rank_attention_torch, reference, 0.125)
    assert relative(gradients[0], expected[0]) < 2e-2
    for a, e in zip(gradients[1:], expected[1:], strict=True):
        equal = [torch.cat((g[:, :, :1], g[:, :, 1::2]), dim=2).double().sum(dim=2) for g in (a, e)]
        assert relative(*equal) < 2e-2
        assert relative(a[:, :, 2::2], e[:, :, 2::2]) < 2e-2


def test_autocast_changes_nothing():
    inputs = [t.detach() for t in make()]
    with torch.autocast("cuda", torch.bfloat16):
        inside = rank_attention(*inputs, 0.125)
    torch.testing.assert_close(inside, rank_attention(*inputs, 0.125), rtol=0, atol=0)


def test_mixed_types():
    query, key, value = (t.detach() for t in make())
    output = rank_attention(query, key.bfloat16(), value.bfloat16(), 0.125)
    assert output.dtype == torch.bfloat16
    expected = rank_attention_torch(query.double(), key.bfloat16().double(), value.bfloat16().double(), 0.125)
    assert relative(output[0], expected[0]) < 3e-3


def test_memory_layouts():
    inputs = make()
    expected = run(rank_attention, inputs, 0.125)
    wide = [torch.randn(2, 2, t.shape[2], 128, device="cuda")[..., ::2].copy_(t.detach()) for t in inputs]
    shifted = [torch.empty(t.numel() + 1, device="cuda")[1:].view(t.shape).copy_(t.detach()) for t in inputs]
    for other in (wide, shifted):
        actual = run(rank_attention, [t.requires_grad_() for t in other], 0.125)
        for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}])
def test_nothing_to_do(shape):
    with use_backend("auto"):
        output, gradients = run(rank_attention, make(**shape), 0.125)
    assert output.numel() == 0
    assert not any(g.any() for g in gradients)


def test_two_runs_give_the_same_bits():
    inputs = make(queries=1000)
    first, second = run(rank_attention, inputs, 0.125), run(rank_attention, inputs, 0.125)
    for a, b in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("queries", [129, 1000])
def test_everything_is_written(queries):
    inputs = make(queries=queries)
    torch.use_deterministic_algorithms(True)  # also fills new memory with NaN
    try:
        output, gradients = run(rank_attention, inputs, 0.125)
    finally:
        torch.use_deterministic_algorithms(False)
    assert output.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


def test_memory_between_the_passes():
    inputs = make(queries=2000)
    run(rank_attention, inputs, 0.125)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = rank_attention(*inputs, 0.125)
    assert torch.cuda.memory_allocated() - before < 1.5 * output.nbytes
    output.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 5 * output.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [False, True])
def test_operator_obeys_the_rules_of_torch_library(views, dtype):
    inputs = make(queries=40, dtype=dtype)
    arguments = (*(token_major(*inputs) if views else inputs), 0.125, [30, 90, 150, 210], True)
    torch.library.opcheck(module.rank_attention, arguments, atol=1e-5, rtol=1e-4)


def test_compiles_without_a_graph_break():
    inputs = make()
    compiled = torch.compile(rank_attention, fullgraph=True)
    for arguments in (inputs, token_major(*inputs)):
        expected, actual = run(rank_attention, arguments, 0.125), run(compiled, arguments, 0.125)
        for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
            assert relative(a, e) < 1e-6


def test_captures_into_a_graph():
    inputs = [t.detach() for t in make()]
    expected = rank_attention(*inputs, 0.125)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rank_attention(*inputs, 0.125)
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)
    inputs[0].mul_(0.5)
    graph.replay()
    torch.testing.assert_close(captured, rank_attention(*inputs, 0.125), rtol=0, atol=0)


def test_runs_on_the_current_stream():
    inputs = [t.detach() for t in make(queries=2000)]
    expected = rank_attention(*inputs, 0.125)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
        inputs[0].mul_(2)
        inputs[0].mul_(0.5)
        actual = rank_attention(*inputs, 0.125)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_while_the_first_is_current():
    inputs = make(queries=64, device="cuda:1")
    assert torch.cuda.current_device() == 0
    check(without_near_ties(inputs, 0.125), tolerance=1e-5)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("shape", [{"keys": 3}, {"keys": 600}, {"dim": 24}])
def test_what_the_kernels_cannot_take_runs_in_torch(shape):
    inputs = make(**shape, queries=20)
    with pytest.raises(ConfigError, match="the kernels"):
        rank_attention(*inputs, 0.125)
    with use_backend("auto"):
        actual = rank_attention(*inputs, 0.125)
    torch.testing.assert_close(actual, rank_attention_torch(*inputs, 0.125))


def test_second_derivatives_are_refused():
    inputs = make(queries=40)
    (gradient,) = torch.autograd.grad(
        rank_attention(*inputs, 0.125).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
