"""The selective scan on every back end (`operator_tester.py`), and what is special: segments, decays, tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.claims import BF16, EVERY, FP16, FP32, FP64, on, reference, run, share
from ops.operator_tester import OperatorTester
from ops.ways import noted_calls
from sa2depth.ops import use_backend
from sa2depth.ops.selective_scan import common

ALL = "cpu emulated interpreted gpu"
FILLS = ("_FILLS_FORWARD", "_FILLS_BACKWARD")
LAST = torch.channels_last


class TestSelectiveScan(OperatorTester):
    operator = "selective_scan_2d"
    names = ("x", "x_proj_weight", "dt_weight", "dt_bias", "a_log", "d_skip")
    any_order = (2, 3)  # sums over all tokens, in the order of the library for matrix products
    defaults = {
        "cpu": {"size": (6, 7), "batch": 2, "channels": 16, "states": 16, "bias": -1},
        "emulated": {"size": (5, 14)},
        "interpreted": {"size": (3, 3), "channels": 3, "rank": 2, "states": 2},  # a chunk and a token
        "cuda": {"size": (17, 31), "batch": 2, "channels": 128, "rank": 16, "bias": -3},
        "triton": {"size": (17, 31), "batch": 2, "channels": 64, "rank": 16},
        "stand-in": {"size": (5, 7), "batch": 2, "channels": 8, "rank": 3, "states": 4},
        "opcheck": {"batch": 1},
    }
    bounds = {
        "cpu": 2e-6, "emulated": 3e-6, "interpreted": 2e-6, "cuda": 1e-5, "triton": 1e-5, "stand-in": 1e-5,
    }  # fmt: skip
    half = {BF16: 1.2e-2, FP16: 1.6e-3}
    cases = [
        *[
            ("cpu", {"size": size, **options})
            for size in ((5, 7), (1, 9), (9, 1), (1, 1), (8, 8), (11, 23))
            for options in (
                {"channels": 5, "states": 3, "rank": 2},
                {"channels": 40, "states": 16, "rank": 16},
                {"channels": 17, "states": 64, "rank": 1},
            )
        ],
        # a chunk, a part of one, several with a last one of one token, of one burst and one token, one column, one row
        *[("interpreted triton", {"size": size}) for size in ((2, 4), (1, 1), (3, 3), (3, 7), (9, 1), (1, 10))],
        ("interpreted triton", {"size": (2, 5), "batch": 2}),
        ("interpreted triton", {"size": (2, 5), "channels": 33, "rank": 1, "states": 1}),
        ("interpreted triton", {"size": (2, 5), "channels": 4, "rank": 5, "states": 3}),
        ("emulated", {"batch": 2, "channels": 70, "rank": 3}),
        *[("gpu", {"size": size}) for size in ((1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (96, 128))],
        *[
            ("gpu", {"size": (12, 23), "channels": channels, "rank": rank})
            for channels, rank in ((5, 1), (70, 3), (512, 16), (192, 24))
        ],
        *[("emulated", {"rank": rank}) for rank in (4, 12, 24)],  # some fill no tile of the tensor cores
        # 16-bit maps beside float32 or 16-bit weights
        *[
            ("emulated", {"size": (6, 23), "dtype": dtype, "others": others})
            for dtype in (BF16, FP16)
            for others in (FP32, dtype)
        ],
        *[("interpreted triton", {"dtype": dtype}) for dtype in (BF16, FP16)],
        *[
            ("gpu", {"size": size, "dtype": dtype, "others": dtype})
            for dtype in (BF16, FP16)
            for size in ((1, 70), (17, 31), (96, 128))
        ],
        *[
            ("gpu", {"size": (12, 23), "channels": channels, "rank": rank, "dtype": BF16, "others": BF16})
            for channels, rank in ((70, 3), (192, 24))
        ],
        # sizes of the networks
        *[
            ("gpu", {"size": (120, 160), "batch": 1, "channels": 512, "dtype": dtype}, bound)
            for dtype, bound in ((FP32, 2e-5), (BF16, None), (FP16, None))
        ],
        *[
            ("gpu", {"size": size, "channels": 192, "rank": 24, "dtype": dtype})
            for size in ((17, 31), (96, 128))
            for dtype in (FP32, BF16, FP16)
        ],
        # a bias of the exponential would show in decays of 0.9999 over 4,000 tokens
        ("cpu", {"size": (40, 100), "batch": 1, "rank": 4, "bias": -9, "only_bias": True}, 1e-5),
        ("cpu", {"size": (20, 30), "channels": 5, "states": 3, "rank": 2, "bias": 200, "only_bias": True}, 1e-5),
        ("emulated", {"size": (8, 20), "mixed_decay": True}, 2e-5),
        ("stand-in", {}),
    ]  # fmt: skip
    # the walk of one row along columns ends beside the map
    edges = [(EVERY, {}), ("interpreted triton", {"size": (1, 1)}), (EVERY, {"size": (1, 9)})]
    empty = [("cpu interpreted triton", {"batch": 0})]
    declines = [
        ("emulated gpu", {}, ""),
        ("emulated gpu", {"dtype": BF16, "rank": 1}, ""),
        (ALL, {"dtype": FP64}, "float64"),
        (f"{ALL} stand-in", {"device": "meta"}, "on meta"),
        ("stand-in", {}, "on cpu"),
        ("cuda triton", {"device": "cpu"}, "on cpu"),
        ("emulated cuda", {"states": 8}, "state size 16"),
        ("emulated cuda", {"rank": 65}, "ranks up to 64"),
        ("emulated cuda", {"batch": 0}, "shape"),
        ("emulated gpu", {"size": (1, 1), "batch": 70000}, "shape"),
        ("emulated cuda", {"size": (2**16, 2**15), "channels": 1, "batch": 1}, "shape"),
        ("interpreted triton", {"states": 33}, "state sizes up to 32"),
        ("interpreted triton", {"rank": 65}, "ranks up to 64"),
        ("interpreted triton", {"size": (1024, 1024), "channels": 512, "states": 16, "rank": 16}, "shape"),
        ("cpu", {"states": 65}, "up to 64, not 65"),
        ("cpu", {"rank": 65}, "up to 64"),
    ]
    compiled_for = ({"rank": 16},)
    sizes_that_change = ({"size": (17, 31)}, {"size": (18, 30)})

    def inputs(
        self, draw, size, batch=1, channels=64, rank=4, states=16, bias=-2, only_bias=False, mixed_decay=False
    ):  # fmt: skip
        dt_bias = draw(4, channels) * (not only_bias) + bias
        dt_weight = draw(4, channels, rank) * rank**-0.5
        if only_bias and bias < 0:
            dt_weight = dt_weight * 0.01
        if mixed_decay:
            dt_bias[:, ::3] = 25.0  # decays that are zero in float32
            dt_bias[:, 1::3] = -9.0  # and decays close to one
        a_log = 0.1 * draw(4 * channels, states)
        a_log = a_log + torch.arange(1.0, states + 1, dtype=torch.float64).log().to(a_log.device)
        return {}, [
            draw(batch, channels, *size),
            draw(4, rank + 2 * states, channels) * channels**-0.5,
            dt_weight,
            dt_bias,
            a_log,
            1 + 0.1 * draw(4 * channels),
        ]

    def check_layout(self, results, tensors):
        assert results[0].is_contiguous(memory_format=LAST) or results[0].shape[1] % 64

    def layouts(self, tensors):
        x, *weights = (t.detach() for t in tensors)
        pixels = torch.zeros(x.numel() + 2, dtype=x.dtype, device=x.device)[2:]
        shifted = pixels.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).copy_(x)
        others = {"channels last": x.to(memory_format=LAST), "channels last off the grid of vectors": shifted}
        return super().layouts(tensors) | {name: [other, *weights] for name, other in others.items()}

    def compiled_too(self, way, sources):
        small = {"SUM_BUFFERS": 1, "SHARED_BYTES": way.module._backward_shared_bytes(16, 1)}
        backward = [source for source in sources if source.path.endswith("/backward.cu")]
        return {replace(s, macros=tuple((dict(s.macros) | small).items())) for s in backward}

    def spills(self, architecture, dtype):
        # once a chunk of 64 tokens, where the compiler for the older architecture finds no better way
        return 32 if architecture == "sm_80" and dtype != FP32 else 0

    def prepare(self, way, monkeypatch):
        if way.kind == "emulated":
            monkeypatch.setattr(way.module, "multiprocessors", lambda device: 1)
        if (
            way.kind == "interpreted"
        ):  # it is slow: what a GPU does with 64 tokens at a time is seen with 8, too
            for module in (way.module, common):
                monkeypatch.setattr(module, "CHUNK", 8)
            monkeypatch.setattr(way.module, "_PROGRAMS", 1)

    @on("stand-in")
    def test_half_precision_comes_back_as_it_went(self, way):
        function, tensors = self.make(way, BF16)
        assert function(*tensors).dtype == BF16

    @on("emulated")
    @pytest.mark.parametrize("size", [(9, 15), (1, 1), (1, 70), (65, 1), (8, 8)], ids=str)
    def test_one_segment(self, way, size, monkeypatch):
        for fills in FILLS:
            monkeypatch.setattr(way.module, fills, 0)
        self.check(way, *self.make(way, size=size))
        assert scans(way) == [("scan_forward", 4), ("scan_backward", 4)]

    @on("emulated")
    @pytest.mark.parametrize(
        "options", [{}, {"dtype": BF16, "size": (9, 17), "batch": 2, "channels": 70, "rank": 3}]
    )
    def test_several_segments(self, way, options, monkeypatch):
        for fills in FILLS:
            monkeypatch.setattr(way.module, fills, 1e9)
        monkeypatch.setattr(way.module, "_BLOCKS_HELD", 48 if options else 12)
        self.check(way, *self.make(way, **{"size": (13, 17), **options}))
        # 221 tokens are 4 chunks, which do not make 3 equal segments: 2 of 2 chunks
        names = ["segment_ends", "scan_forward", "adjoint_segment_ends", "scan_backward"]
        assert [name for name, _ in scans(way)] == names
        assert options or [rows for _, rows in scans(way)] == [8] * 4

    @on("emulated")
    def test_as_many_segments_as_chunks(self, way, monkeypatch):
        for fills in FILLS:
            monkeypatch.setattr(way.module, fills, 1e9)
        monkeypatch.setattr(way.module, "multiprocessors", lambda device: 1000)
        self.check(way, *self.make(way, size=(11, 19)))

    @on("cuda")
    @pytest.mark.parametrize("fills", [0, 1e9], ids=["one", "most"])
    def test_any_number_of_segments(self, way, fills, monkeypatch):
        for name in FILLS:
            monkeypatch.setattr(way.module, name, fills)
        self.check(way, *self.make(way, size=(30, 41), channels=64))

    @on("emulated")
    def test_small_shared_memory(self, way, monkeypatch):
        monkeypatch.setattr(way.module, "shared_bytes_limit", lambda device: 99 << 10)
        self.check(way, *self.make(way, size=(9, 15)))

    @on("emulated cuda")
    def test_too_little_shared_memory_is_a_reason(self, way, monkeypatch):
        monkeypatch.setattr(way.module, "why_unavailable", lambda device: "")
        monkeypatch.setattr(way.module, "shared_bytes_limit", lambda device: 64 << 10)
        assert "too little shared memory" in way.module._why_unavailable(0, 16)

    @on("emulated")
    def test_channels_last_memory_is_taken_as_it_is(self, way):
        function, tensors = self.make(way, size=(7, 10), channels=96)
        function(*tensors)
        assert (way.launches[0][0], way.launches[0][2]) == ("to_tokens", (3, 3, 1))
        for dtype in (FP32, BF16):
            way.launches.clear()
            function, (x, *weights) = self.make(way, dtype, size=(7, 10))
            x = x.detach().to(memory_format=LAST)
            with noted_calls() as calls:
                y = function(x, *weights)
            tokens = calls[0][1][0]
            assert "to_tokens" not in way.kernels()
            assert tokens.data_ptr() == x.data_ptr()
            assert tokens.dtype == y.dtype == dtype

    @on("emulated cuda")
    def test_turning_maps_obeys_the_rules_of_torch_library(self, way):
        x = torch.randn(2, 70, 9, 11, device=way.device, requires_grad=True)
        torch.library.opcheck(way.module.to_tokens, (x,))

    @on("emulated")
    @pytest.mark.parametrize("keep_states", [False, True])
    def test_the_operator_takes_no_image(self, way, keep_states):
        _, (x, *weights) = self.make(way)
        tokens = x.detach().flatten(2).transpose(1, 2)[:0].requires_grad_()
        y, *kept = way.module.selective_scan(tokens, *weights, 5, keep_states)
        assert y.shape == tokens.shape
        assert not way.launches
        if keep_states:
            assert [t.shape for t in kept] == [(0, 70, 4 * 36), (0, 2, 4, 64, 16)]
            assert not any(g.any() for g in torch.autograd.grad(y.sum(), (tokens, *weights)))

    @on("cpu")
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        st.integers(0, 3),
        st.integers(1, 50),
        st.integers(1, 20),
        st.integers(1, 20),
    )
    def test_any_shape(self, way, size, batch, channels, states, rank):
        options = {"size": size, "batch": batch, "channels": channels, "states": states, "rank": rank}
        self.check(way, *self.make(way, **options), bound=1e-5)

    @on("gpu")
    def test_no_image_runs_in_torch_or_here(self, way):
        function, tensors = self.make(way, batch=0)
        with use_backend("auto"):
            output, *gradients = run(function, tensors)
        assert output.shape == tensors[0].shape
        assert not any(g.any() for g in gradients)

    @on("cuda triton")
    @pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
    def test_half_precision_output_is_little_worse_than_its_rounding(self, way, dtype):
        function, tensors = self.make(way, dtype, others=dtype, size=(60, 80))
        expected = reference(function, tensors)[0]
        assert share(function(*tensors), expected) < 3 * share(expected.to(dtype), expected)

    @on("cuda")
    @pytest.mark.parametrize(("dtype", "factor"), [(BF16, 1), (FP32, 2)])
    def test_peak_memory(self, way, dtype, factor):
        function, (x, *weights) = self.make(way, dtype, size=(120, 160), batch=8, channels=512)
        x = x.detach().to(memory_format=LAST)

        def peak(train):
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(train)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with torch.set_grad_enabled(train):
                y = function(leaf, *weights)
            if train:
                y.backward(torch.ones_like(y))
            return (torch.cuda.max_memory_allocated() - before) / 1e9

        peak(train=True)  # workspaces of the matrix products
        output = x.numel() * x.element_size() / 1e9
        inference, training = peak(train=False) - output, peak(train=True)
        print(f"{dtype}: inference {inference:.2f} GB besides the output, training {training:.2f} GB")
        assert inference < 0.7 * factor
        assert training < 2.2 * factor


def scans(way):
    """Name and rows of the grid of the kernels that scan."""
    others = ("to_tokens", "sum_directions")
    return [(name, grid[1]) for name, _, grid in way.launches if name not in others]
