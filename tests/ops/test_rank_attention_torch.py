import sys
from itertools import pairwise

import pytest
import torch

from sa2depth.errors import ShapeError
from sa2depth.ops import rank_attention
from sa2depth.ops.rank_attention import rank_ranges


def make(keys, queries=6, heads=2, batch=2, dim=4, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, n, dim, generator=random, dtype=dtype) for n in (queries, keys, keys)]


def membership(query, key, scale=1.0):
    """Which keys each group attends to: (5, B, h, Q, N), read off with one-hot values."""
    keys = key.shape[2]
    outputs = []
    # values as wide as there are keys, in the operator's own width
    for start in range(0, keys, key.shape[-1]):
        value = torch.zeros_like(key)
        for column in range(min(key.shape[-1], keys - start)):
            value[:, :, start + column, column] = 1
        outputs.append(rank_attention(query, key, value, scale))
    return torch.cat(outputs, dim=-1)[..., :keys] > 0


def topk_formula(query, key, value, scale):
    """The released formula: four independent top-k calls."""
    scores = query @ key.transpose(-1, -2) * scale
    n = scores.shape[-1]
    outputs, start = [scores.softmax(-1) @ value], 0
    for tenths in (1, 3, 5, 7):
        end = int(n * tenths / 10)
        index = scores.topk(end, dim=-1)[1][..., start:]
        masked = torch.full_like(scores, -torch.inf).scatter(-1, index, scores.gather(-1, index))
        outputs.append(masked.softmax(-1) @ value)
        start = end
    return torch.stack(outputs)


@pytest.mark.parametrize("keys", [10, 11, 15, 20, 33, 99, 100])
def test_equals_independent_topk(keys):
    query, key, value = make(keys)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    actual, expected = rank_attention(query, key, value, 0.5), topk_formula(query, key, value, 0.5)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad((actual * weight).sum(), (query, key, value)),
        torch.autograd.grad((expected * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("keys", [300, 385, 418])
def test_ranges_of_the_released_sizes(keys):
    bounds = {300: (30, 90, 150, 210), 385: (38, 115, 192, 269), 418: (41, 125, 209, 292)}[keys]
    assert rank_ranges(keys) == list(zip((0, *bounds), bounds, strict=False))


@pytest.mark.parametrize("keys", [4, 7, 10, 30, 64])
def test_exact_counts_and_disjoint_groups_under_ties(keys):
    query, key, _ = make(keys)
    key[:, :, 1::2] = key[:, :, :1]  # half of the keys are the same
    groups = membership(query, key)[1:]
    assert (groups.sum(dim=0) <= 1).all()
    for group, (start, end) in zip(groups, rank_ranges(keys), strict=True):
        assert (group.sum(dim=-1) == end - start).all()


def test_all_scores_equal():
    query, key, _ = make(20)
    groups = membership(torch.zeros_like(query), key)
    assert groups[0].all()
    assert [int(g.sum(-1)[0, 0, 0]) for g in groups[1:]] == [2, 4, 4, 4]


@pytest.mark.parametrize("keys", range(1, 10))
def test_few_keys_are_finite_with_a_key_each(keys):
    query, key, value = (t.requires_grad_() for t in make(keys))
    out = rank_attention(query, key, value, 1.0)
    out.square().sum().backward()
    for tensor in (out, query.grad, key.grad, value.grad):
        assert tensor.isfinite().all()
    ranges = rank_ranges(keys)
    assert all(0 <= start < end <= keys for start, end in ranges)
    counts = membership(query.detach(), key.detach())[1:].sum(dim=-1)
    assert (counts >= 1).all()
    if keys >= 4:
        assert all(before[1] == after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_blocks_of_queries_change_nothing(block):
    query, key, value = (t.requires_grad_() for t in make(24, queries=17))
    whole = rank_attention(query, key, value, 0.7, block_queries=17)
    parts = rank_attention(query, key, value, 0.7, block_queries=block)
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(whole)
    for a, b in zip(
        torch.autograd.grad((whole * weight).sum(), (query, key, value)),
        torch.autograd.grad((parts * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_blocks_follow_the_memory_budget(monkeypatch):
    module = sys.modules["sa2depth.ops.rank_attention.torch"]
    query, key, value = make(24, queries=17)
    whole = rank_attention(query, key, value, 1.0)
    sizes = []
    attend = module._attend
    monkeypatch.setitem(module._SCORES_PER_BLOCK, "cpu", 5 * 2 * 2 * 24)
    monkeypatch.setattr(module, "_attend", lambda q, *rest: sizes.append(q.shape[2]) or attend(q, *rest))
    torch.testing.assert_close(rank_attention(query, key, value, 1.0), whole)
    assert sizes == [5, 5, 5, 2]


def test_gradients():
    query, key, value = (t.requires_grad_() for t in make(11, queries=3, heads=1, batch=1, dim=2))
    assert torch.autograd.gradcheck(lambda *a: rank_attention(*a, 0.8), (query, key, value))


def test_large_scores_stay_finite():
    query, key, value = make(40, dtype=torch.float32)
    out = rank_attention(100 * query, 100 * key, value, 1.0)
    assert out.isfinite().all()


def test_ranks_are_decided_in_float32_under_autocast():
    query, key, value = make(60, queries=50, dtype=torch.float32)
    expected = rank_attention(query, key, value, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        actual = rank_attention(query, key, value, 0.5)
    torch.testing.assert_close(actual, expected)


def test_wrong_shapes_are_named():
    query, key, value = make(12)
    with pytest.raises(ShapeError, match=r"\(B, h, N, d\)"):
        rank_attention(query, key, value[:, :, :-1], 1.0)
    with pytest.raises(ShapeError, match="at least one key"):
        rank_attention(query, key[:, :, :0], value[:, :, :0], 1.0)
