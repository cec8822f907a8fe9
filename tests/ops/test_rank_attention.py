"""Rank-grouped attention on every back end (`operator_tester.py`), and what is special: ties, scores, tokens."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.claims import BF16, EVERY, FP16, FP32, FP64, SMALL, leaves, on, reference, run, share
from ops.operator_tester import OperatorTester
from ops.ways import GPU
from sa2depth.ops import rank_attention, use_backend
from sa2depth.ops.rank_attention import rank_ranges, triton
from sa2depth.ops.registry import OPERATORS

ALL = "cpu emulated interpreted gpu"


class TestRankAttention(OperatorTester):
    operator = "rank_attention"
    names = ("query", "key", "value")
    defaults = {
        "cpu": {"keys": 20, "queries": 50, "heads": 2, "batch": 2, "far": True},
        "emulated": {"keys": 31, "queries": 19},
        "interpreted": {"keys": 21, "queries": 5},
        "cuda": {"keys": 300, "queries": 129, "heads": 2, "batch": 2, "dim": 64, "far": True},
        "triton": {"keys": 300, "queries": 129, "heads": 2, "batch": 2, "dim": 64, "far": True},
        "opcheck": {"keys": 12, "queries": 3, "heads": 2, "batch": 1, "dim": 16, "tokens": True},
    }
    # the gradient's own rounding on its way in adds to that of the result
    half = {BF16: 6e-3, FP16: 1e-3}
    bounds = {"cpu": 5e-6, "emulated": 5e-6, "interpreted": 3e-6, "cuda": 1e-5, "triton": 1e-5}
    cases = [
        *[
            ("cpu", {"queries": queries, "keys": keys, "dim": dim, "batch": 1})
            for queries, keys in ((1, 4), (33, 5), (40, 9), (70, 10), (130, 33), (200, 64))
            for dim in (64, 80, 7)
        ],
        *[("cpu", {"queries": 400, "keys": keys, "dim": 64, "heads": 1, "batch": 1}) for keys in (300, 385, 418)],
        ("cpu", {"queries": 2500, "keys": 12, "heads": 1, "batch": 1}),  # summed in parts
        *[("emulated", {"keys": keys}) for keys in (4, 5, 9, 10, 31, 32, 33, 70)],
        *[("emulated", {"keys": keys, "dim": dim, "queries": 5}) for keys, dim in ((300, 64), (418, 80), (512, 16))],
        ("emulated", {"keys": 20, "dim": 128, "queries": 3}),
        ("emulated", {"keys": 40, "queries": 37, "heads": 3, "batch": 2}),
        *[("interpreted triton", {"keys": keys, "queries": 17}) for keys in (4, 5, 9)],
        *[("interpreted triton", {"keys": keys}) for keys in (16, 17, 70)],
        *[
            ("interpreted triton", {"keys": 33, "queries": 3, "heads": 2, "batch": 2, "dim": dim, "tokens": True})
            for dim in (20, 80)
        ],
        *[("gpu", {"queries": queries}) for queries in (1, 31, 129, 700)],
        *[
            ("gpu", {"keys": keys, "queries": 700, "dim": dim, "tokens": tokens})
            for keys, dim in ((300, 64), (418, 80), (385, 64), (37, 16), (5, 16), (512, 128))
            for tokens in (False, True)
        ],
        *[("triton", {"keys": n, "dim": dim, "queries": 700, "tokens": True}) for n, dim in ((1024, 64), (37, 20))],
        *[
            ("gpu", {"queries": queries, "heads": 1, "batch": 1, "tokens": True})
            for queries in (4800, 19200)
        ],
        # half precision
        *[
            ("emulated", {"keys": keys, "queries": 17 if keys < 300 else 5, "dim": dim, "dtype": dtype}, bound)
            for dtype, bound in ((BF16, (3e-3, 6e-3)), (FP16, (5e-4, 1e-3)))
            for keys, dim in ((60, 16), (20, 48), (130, 64), (70, 80), (300, 64))
        ],
        ("interpreted", {"keys": 40, "queries": 19, "dtype": BF16, "tokens": True}, (8e-3, 1.6e-2)),
        ("interpreted", {"keys": 40, "queries": 19, "dtype": FP16, "tokens": True}, (5e-4, 1e-3)),
        *[
            ("gpu", {"keys": keys, "dim": dim, "heads": heads, "dtype": dtype, "tokens": True})
            for dtype in (BF16, FP16)
            for keys, dim, heads in ((300, 64, 2), (418, 80, 2), (37, 16, 2), (512, 128, 2), (300, 48, 3))
        ],
        *[("triton", {"keys": 1024, "dim": 16, "dtype": dtype, "tokens": True}) for dtype in (BF16, FP16)],
        # ties: scores that are whole numbers, exact in any order of summation
        *[
            ("emulated", {"keys": keys, "whole": spread, "queries": 17, "scale": 0.5})
            for keys in (12, 64, 301)
            for spread in (0.15, 0.3, 0.7)
        ],
        ("interpreted triton", {"keys": 12, "whole": 0.3, "queries": 16, "scale": 0.5, "far": False}),
        ("interpreted triton", {"keys": 40, "whole": 0.7, "queries": 16, "scale": 0.5, "far": False}),
        *[
            ("gpu", {"keys": keys, "dim": dim, "whole": spread, "far": False, "scale": 0.125})
            for keys, dim in ((300, 64), (37, 16))
            for spread in (0.15, 0.3, 0.7)
        ],
        ("emulated interpreted gpu", {"keys": 50, "factor": 0.0, "far": False}),  # the first keys, the next ...
        # the larger a score, the larger the error that it carries into its exponential
        *[("gpu", {"queries": 64, "factor": factor}, 3e-4) for factor in (30.0, 1e-18)],
    ]  # fmt: skip
    empty = [
        ("cpu interpreted triton", {"batch": 0, "far": False}),
        ("cpu interpreted triton", {"queries": 0, "far": False}),
    ]
    declines = [
        ("emulated gpu", {"far": False}, ""),
        (ALL, {"dtype": FP64, "others": FP64, "far": False}, "float64"),
        (ALL, {"device": "meta", "far": False}, "on meta"),
        ("cuda triton", {"device": "cpu", "far": False}, "on cpu"),
        ("emulated cuda", {"dim": 24, "far": False}, "16, 32 ... 128 channels, not 24"),
        ("emulated cuda", {"keys": 3, "far": False}, "4 to 512 keys, not 3"),
        ("emulated cuda", {"keys": 513, "far": False}, "not 513"),
        ("emulated cuda", {"queries": 0, "far": False}, "shape"),
        ("interpreted triton", {"dim": 129, "far": False}, "128 channels, not 129"),
        ("interpreted triton", {"keys": 3, "far": False}, "4 to 1024 keys, not 3"),
        ("interpreted triton", {"keys": 1025, "far": False}, "not 1025"),
        ("cpu", {"keys": 3, "far": False}, "there are 3 keys"),
    ]
    sizes_that_change = ({}, {"queries": 130})

    def inputs(
        self, draw, keys, queries, heads=1, batch=1, dim=16, scale=None, far=False, whole=None, factor=1.0, tokens=False
    ):  # fmt: skip
        scale = dim**-0.5 if scale is None else scale
        query, key, value = (draw(batch, heads, n, dim) for n in (queries, keys, keys))
        if whole:
            query, key = ((whole * t).round().clamp(-3, 3) for t in (query, key))
        return {"scale": scale, "far": far, "tokens": tokens}, [query * factor, key, value]

    def make(self, way, dtype=FP32, others=None, **options):
        function, tensors = super().make(way, dtype, others or dtype, **options)
        settled = {**self.defaults[way.kind], **options}
        if settled.get("far"):
            tensors = without_near_ties(tensors)
        return function, leaves(token_major(tensors) if settled.get("tokens") else tensors)

    def function(self, scale, far=False, tokens=False):
        return lambda *tensors: rank_attention(*tensors, scale)

    def parts(self, output):
        return list(output)

    def output_shape(self, tensors):
        return 5, *tensors[0].shape

    def output_dtype(self, tensors):
        return tensors[2].dtype

    def check_layout(self, results, tensors):
        if results[0].is_cuda:
            assert results[0].transpose(2, 3).is_contiguous()

    def spills(self, architecture, dtype):
        return 128 if dtype == FP32 else 0  # found 112 and 120, in kernels that hold a row of scores

    def layouts(self, tensors):
        return super().layouts(tensors) | {"token-major": token_major([t.detach() for t in tensors])}

    def plain(self, way, **options):
        """Inputs to be changed."""
        function, tensors = self.make(way, **options)
        return function, [t.detach() for t in tensors]

    @on("emulated")
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
    def test_token_major_views_are_taken_without_a_copy(self, way, dtype, monkeypatch):
        options = {"keys": 40, "queries": 35, "heads": 2, "batch": 2, "dim": 48}
        function, tensors = self.make(way, dtype, **options)
        expected, views, copies = run(function, tensors), leaves(token_major(tensors)), []
        for name in ("contiguous", "clone"):
            original = getattr(torch.Tensor, name)

            def copy(tensor, *a, original=original, **k):
                if (result := original(tensor, *a, **k)).data_ptr() != tensor.data_ptr():
                    copies.append(tensor.shape)
                return result

            monkeypatch.setattr(torch.Tensor, name, copy)
        output = function(*views)
        assert output.transpose(2, 3).is_contiguous()
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
        for grad in (weight, weight.transpose(2, 3).contiguous().transpose(2, 3)):
            copies.clear()
            gradients = torch.autograd.grad(output, views, grad, retain_graph=True)
            assert not copies
            assert all(g.transpose(1, 2).is_contiguous() for g in gradients)
            self.equal((output, *gradients), expected)

    @on("emulated")
    @pytest.mark.parametrize("processors", [1, 100])
    def test_any_number_of_parts(self, way, processors, monkeypatch):
        monkeypatch.setattr(way.module, "multiprocessors", lambda device: processors)
        monkeypatch.setattr(way.module, "_FEWEST_QUERIES", 16)
        self.check(way, *self.make(way, keys=70, queries=53))
        # 53 queries do not make 3 equal parts of whole tiles: 2 of 32
        assert way.kernels() == ["forward", "backward_queries", "backward_keys"]
        assert way.launches[-1][2] == (2, 2, 1)

    @on("interpreted triton")
    @pytest.mark.parametrize("queries", [40, 70])
    def test_parts_of_queries(self, way, queries, monkeypatch):
        monkeypatch.setattr(way.module, "_FEWEST_QUERIES", 32)
        self.check(way, *self.make(way, keys=10, queries=queries, dim=16, heads=1, batch=1))

    @on(EVERY)
    def test_mixed_types_are_computed_in_float32(self, way):
        function, (query, key, value) = self.plain(way)
        tensors = query, key.bfloat16(), value.bfloat16()
        output = function(*tensors)
        assert output.dtype == BF16
        assert share(output, reference(function, leaves(tensors))[0]) < 3e-3

    @on("emulated interpreted triton cuda")
    @pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
    def test_equal_keys_with_scores_that_are_rounded(self, way, dtype):
        """Groups end inside a class of equal keys: the backward pass must find the same scores again, bit by bit.

        Keys are such when they are sampled at one point of the border. Which of them the oracle takes is decided by
        rounding in its matrix product.
        """
        if dtype != FP32 and way.kind == "interpreted":
            pytest.skip("the interpreter multiplies in another way")
        function, tensors = self.plain(way, dtype=dtype, keys=65, queries=40, far=False)
        for tensor in tensors[1:]:
            tensor[:, :, 1::2] = tensor[:, :, :1]
        actual, expected = (each(function, leaves(tensors)) for each in (run, reference))
        errors = [share(*pair) for pair in zip(actual[:2], expected[:2], strict=True)]
        for a, e in zip(actual[2:], expected[2:], strict=True):
            equal = [torch.cat((g[:, :, :1], g[:, :, 1::2]), dim=2).double().sum(dim=2) for g in (a, e)]
            errors += [share(*equal), share(a[:, :, 2::2], e[:, :, 2::2])]
        assert max(errors) < (1e-5 if dtype == FP32 else 2e-2), errors

    @on(SMALL, every_path=True)
    @pytest.mark.parametrize("keys", [4, 7, 10, 30, 64, 300])
    def test_ties_are_broken_by_index_with_exact_counts(self, way, keys):
        if way.kind == "interpreted" and keys > 64:
            pytest.skip("takes the interpreter long")
        dim = min(-(-keys // 16) * 16, 128)
        random = torch.Generator().manual_seed(0)
        # few different values, negative, zero of both signs and positive: whole groups are ties
        score = torch.tensor([-1.5, -0.0, 0.0, 2.0, 2.0])[torch.randint(0, 5, (keys,), generator=random)]
        query, key = torch.zeros(1, 1, 3, dim), torch.zeros(1, 1, keys, dim)
        query[..., 0], key[0, 0, :, 0] = 1, score
        groups = membership(way, query.to(way.device), key.to(way.device))[:, 0, 0, 0].cpu()
        order = score.sort(descending=True, stable=True)[1]
        for group, (start, end) in zip(groups[1:], rank_ranges(keys), strict=True):
            assert set(group.nonzero().flatten().tolist()) == set(order[start:end].tolist())

    @on(EVERY)
    def test_membership_is_exact(self, way):
        keys = 300 if way.kind in GPU else 37
        _, (query, key, _) = self.plain(way, keys=keys, whole=0.4, queries=16, far=False, heads=1, batch=1)
        found = membership(way, query, key)
        assert (found == membership(way, query.double(), key.double(), oracle=True)).all()
        for group, (start, end) in zip(found[1:], rank_ranges(keys), strict=True):
            assert (group.sum(dim=-1) == end - start).all()

    @on("emulated interpreted triton")
    @pytest.mark.parametrize("case", ["large", "outliers", "two clusters", "exponential", "tiny"])
    def test_unusual_scores(self, way, case):
        options = {"keys": 60, "queries": 8, "dim": 16, "heads": 1, "batch": 1, "far": False, "scale": 0.4}
        function, (query, key, value) = self.plain(way, **options)
        if case == "large":
            query *= 30
        elif case == "outliers":
            key[:, :, ::30] *= 1e4
        elif case == "two clusters":
            key[:, :, ::2] += 20 * query[:, :, :1]
        elif case == "exponential":
            key *= torch.exp(torch.linspace(-12, 3, 60, device=way.device))[:, None]
        else:
            query *= 1e-18
        # the larger a score, the larger the error that it carries into its exponential
        bound = {"tiny": 3e-6, "exponential": 1e-5}.get(case, 3e-4)
        # a query that sees one key only has no gradient: what the difference of two roundings leaves, times the key
        bounds = bound, 1e-2 if case == "outliers" else bound
        self.check(way, function, leaves([query, key, value]), bounds)

    @on("cpu")
    @pytest.mark.parametrize("spread", [0.0, 1e-38, 1e-20, 1e20, 3e37])
    def test_scores_of_any_magnitude(self, way, spread):
        random = torch.Generator().manual_seed(0)
        query, key = torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 40, 4)
        key[0, 0, :, 0] = spread * torch.linspace(-1, 1, 40)[torch.randperm(40, generator=random)]
        tensors = (query, key, torch.randn(1, 1, 40, 4, generator=random))
        function = self.function(1.0)
        expected = OPERATORS["rank_attention"].backend("torch").run(*tensors, 1.0, rank_ranges(40), None)
        torch.testing.assert_close(function(*tensors), expected, rtol=1e-5, atol=1e-6)

    @on(EVERY)
    @pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3.4e38])
    def test_a_row_with_an_undefined_score_shows_and_no_other(self, way, bad):
        function, (query, key, value) = self.plain(way, queries=8, far=False)
        query[:, :, 3] = bad
        query.requires_grad_()
        output = function(query, key, value)
        output[:, :, :, :3].sum().backward()
        assert output[0, :, :, 3].isnan().all()
        assert way.kind != "cpu" or output[..., 3, :].isnan().all()
        others = [0, 1, 2, 4, 5, 6, 7]
        assert output[:, :, :, others].isfinite().all()
        assert query.grad[:, :, :3].isfinite().all()
        key[:, :, 7, 0] = torch.nan
        assert function(query, key, value)[0].isnan().all()

    @on("cpu")
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 80), st.integers(4, 40), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2))
    def test_any_shape(self, way, queries, keys, dim, heads, batch):
        random = torch.Generator().manual_seed(0)
        # scores are multiples of 1/8 and exact in float32: many are equal, none is nearly so
        query = torch.randint(-2, 3, (batch, heads, queries, dim), generator=random) / 2
        key = torch.randint(-1, 2, (batch, heads, keys, dim), generator=random) / 2
        value = torch.randn(batch, heads, keys, dim, generator=random)
        self.check(way, self.function(0.5), leaves([query, key, value]), bound=1e-5)

    @on("cuda triton")
    def test_groups_are_those_of_float32(self, way):
        """Near ties included: at most as many keys are in another group as float32 scores cannot tell apart."""
        for dtype in (FP32, BF16):
            function, tensors = self.plain(way, dtype=dtype, queries=2000, heads=1, batch=1, far=False)
            actual, expected = function(*tensors), reference(function, leaves(tensors))[0]
            if dtype == BF16:
                assert max(share(a, e) for a, e in zip(actual, expected, strict=True)) < 4e-3
                continue
            moved = ((actual - expected).abs().amax(dim=-1) > 1e-3).float().mean(dim=-1).flatten()
            print("queries with a key in another group", moved.tolist())
            assert moved[0] == 0
            assert moved.max() < 5e-3

    @on("cuda triton")
    @pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}], ids=str)
    def test_nothing_to_do_under_auto(self, way, shape):
        function, tensors = self.make(way, far=False, **shape)
        with use_backend("auto"):
            output, *gradients = run(function, tensors)
        assert output.numel() == 0
        assert not any(g.any() for g in gradients)

    @on("cuda triton")
    def test_memory_between_and_in_the_passes(self, way):
        function, tensors = self.make(way, queries=2000, far=False)
        run(function, tensors)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = function(*tensors)
        assert torch.cuda.memory_allocated() - before < 1.5 * output.nbytes
        output.sum().backward()
        most = 5 if way.kind == "cuda" else 7
        assert torch.cuda.max_memory_allocated() - before < most * output.nbytes


def membership(way, query, key, oracle=False):
    """Which keys each group attends to: (5, B, h, Q, N), read off with values that are one at one key."""
    keys, dim = key.shape[2:]
    outputs = []
    for start in range(0, keys, dim):
        value = torch.zeros_like(key)
        columns = range(min(dim, keys - start))
        value[:, :, [start + c for c in columns], list(columns)] = 1
        with use_backend("torch" if oracle else way.backend):
            outputs.append(rank_attention(query, key, value, 0.25))
    return torch.cat(outputs, dim=-1)[..., :keys] > 0


def token_major(tensors):
    """The same values as projections of tokens leave them: queries ``(B, Q, h d)``, keys and values in one tensor."""
    query, key, value = (t.detach() for t in tensors)
    both = torch.stack([t.transpose(1, 2) for t in (key, value)], dim=2).contiguous().flatten(2)
    views = [t.unflatten(-1, key.shape[1::2]).transpose(1, 2) for t in both.chunk(2, dim=-1)]
    return [query.transpose(1, 2).contiguous().transpose(1, 2), *views]


def without_near_ties(tensors):
    """Leaves out queries that have two scores at the end of a group closer than float32 can tell apart."""
    query, key, value = (t.detach() for t in tensors)
    scores = (query.double() @ key.double().transpose(-1, -2)).sort(dim=-1, descending=True)[0]
    ends = [end for _, end in rank_ranges(key.shape[2]) if end < key.shape[2]]
    gaps = torch.stack([scores[..., end - 1] - scores[..., end] for end in ends]).amin(dim=0)
    safe = (gaps > 1e-5 * scores.abs().amax(dim=-1)).flatten(0, 1).all(dim=0)
    assert safe.float().mean() > 0.5
    return [query[:, :, safe].contiguous(), key, value]


def test_tiles_hold_the_keys():
    for keys in range(4, 1025):
        first, second = triton._halves(keys)
        assert first & (first - 1) == second & (second - 1) == 0
        assert 16 <= second <= first < max(keys, 17)
        assert keys <= first + second
