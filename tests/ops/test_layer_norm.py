"""Layer normalisation on every back end (`operator_tester.py`), and what is special about it: rows, teams, GELU."""

import pytest
import torch
import torch.nn.functional as F

from ops.claims import BF16, EVERY, FP16, FP32, FP64, leaves, on, reference, run, share
from ops.operator_tester import OperatorTester
from ops.ways import backend_of, noted_calls
from sa2depth.ops import layer_norm
from sa2depth.ops.layer_norm import cuda, triton
from sa2depth.ops.layer_norm.common import rows_in_memory

ALL = "emulated interpreted gpu"
EPS = 1e-5
VIEWS = {
    "inner": lambda t: t[:, :1].expand(-1, 5, -1),
    "outer": lambda t: t[:1].expand(5, -1, -1),
    "both": lambda t: t[:1, :1].expand(3, 4, -1),
    "two": lambda t: t[:, :1, None].expand(-1, 3, 4, -1),
    "one number": lambda t: t.as_strided((4, 9, 64), (1, 4, 0)),
}


class TestLayerNorm(OperatorTester):
    operator = "layer_norm"
    names = ("input", "weight", "bias")
    autocast = "output"
    defaults = {
        "all": {"shape": (2, 7, 64)},
        "cuda": {"shape": (2, 17, 31, 64)},
        "triton": {"shape": (2, 17, 31, 64)},
        "opcheck": {"shape": (5, 40), "gelu": True},
    }
    bounds = {"emulated": 2e-6, "interpreted": 2e-6, "cuda": 5e-6, "triton": 5e-6}
    half = {BF16: 4e-3, FP16: 5e-4}
    cases = [
        *[
            ("emulated", {"shape": (11 if channels < 1024 else 3, channels), "gelu": gelu})
            for channels in (8, 32, 40, 64, 80, 96, 128, 160, 256, 320, 512, 640, 1000, 1024, 1280, 8192)
            for gelu in (False, True)
        ],
        *[
            ("interpreted triton", {"shape": (11 if channels < 256 else 3, channels), "gelu": gelu})
            for channels in (3, 13, 40, 64, 80, 250, 512, 1280)
            for gelu in (False, True)
        ],
        ("interpreted", {"shape": (2, 8192)}),
        *[
            ("gpu", {"shape": (3, 67, channels), "gelu": gelu})
            for channels in (8, 32, 40, 64, 80, 128, 160, 256, 320, 512, 640, 1000, 1024, 1280, 8192)
            for gelu in (False, True)
        ],
        *[("emulated", {"shape": (rows, n)}) for rows in (1, 2, 63, 64, 65, 131, 700) for n in (32, 64, 240)],
        *[("interpreted triton", {"shape": (rows, n)}) for rows in (1, 15, 65, 700) for n in (32, 80)],
        *[("gpu", {"shape": (rows, n)}) for rows in (1, 63, 64, 65, 1000, 12345) for n in (32, 64, 240, 512)],
        ("emulated", {"shape": (64,)}),
        # half precision costs one rounding
        *[
            ("emulated", {"shape": (5, channels), "dtype": dtype}, "rounded")
            for channels in (32, 80, 256, 512, 760, 1024, 1280)
            for dtype in (BF16, FP16)
        ],
        *[("emulated", {"shape": (70, 40), "dtype": dtype, "gelu": True}, "rounded") for dtype in (BF16, FP16)],
        *[
            ("interpreted", {"shape": (3, channels), "dtype": dtype, "gelu": gelu}, "rounded")
            for channels in (40, 256, 1280)
            for dtype in (BF16, FP16)
            for gelu in (False, True)
        ],
        *[
            ("gpu", {"shape": (70, channels), "dtype": dtype, "gelu": gelu}, "rounded")
            for channels in (32, 40, 80, 256, 512, 1024, 1280)
            for dtype in (BF16, FP16)
            for gelu in (False, True)
        ],
        (ALL, {"dtype": BF16, "others": BF16}, 4e-3),
        # sizes of the networks
        *[
            ("gpu", {"shape": shape, "dtype": dtype}, 2**-8 if dtype == BF16 else 5e-6)
            for shape in (
                (8, 240, 320, 32),
                (8, 120, 160, 64),
                (98304, 80),
                (8, 60, 80, 128),
                (8, 30, 40, 256),
                (8, 15, 20, 512),
                (8, 1200, 1024),
                (384, 1280),
            )
            for dtype in (FP32, BF16)
        ],
    ]  # fmt: skip
    empty = [(ALL, {"shape": (0, 64)}), (ALL, {"shape": (2, 0, 64)})]
    declines = [
        (ALL, {"shape": (2, 5, 8)}, ""),
        (ALL, {"shape": (8, 4000, 5000, 64)}, ""),  # more than 2**31 elements
        (ALL, {"shape": (5, 8), "dtype": FP64}, "float64"),
        ("emulated cuda", {"shape": (2, 8), "device": "meta"}, "on meta"),
        ("cuda triton", {"shape": (2, 8), "device": "cpu"}, "on cpu"),
        ("emulated cuda", {"shape": (5, 12)}, "12 channels"),
        ("emulated cuda", {"shape": (5, 0)}, "0 channels"),
        ("emulated cuda", {"shape": (5, 8200)}, "8200 channels"),
        ("interpreted triton", {"shape": (5, 0)}, "there are 0 channels"),
        ("interpreted triton", {"shape": (5, 8193)}, "there are 8193 channels"),
        (ALL, {"shape": (2**31, 8)}, "shape"),
    ]
    compiled_for = ({}, {"gelu": True})
    sizes_that_change = ({"shape": (2, 17, 31, 64)}, {"shape": (2, 18, 30, 64)})

    def inputs(self, draw, shape, shift=0.5, **options):
        return options, [draw(*shape) + shift, draw(shape[-1]), draw(shape[-1])]

    def kernels(self, way, function):
        """While the compiler traces, the public function is the torch path."""
        return lambda *tensors: backend_of(way).run(*tensors, EPS, False)

    def layouts(self, tensors):
        x, weight, bias = (t.detach() for t in tensors)
        others = {
            "rows with a pitch": F.pad(x, (8, 56))[..., 8:72],
            "rows with an odd pitch": F.pad(x, (0, 1))[..., :64],
            "rows apart": F.pad(x, (0, 0, 0, 3))[..., : x.shape[-2], :],
        }
        return super().layouts(tensors) | {name: [other, weight, bias] for name, other in others.items()}

    def prepare(self, way, monkeypatch):
        if way.kind == "interpreted":  # several steps, for some programs one less
            monkeypatch.setattr(way.module, "multiprocessors", lambda device: 1)

    @on(EVERY)
    def test_compiled_code_is_left_to_the_compiler(self, way):
        function, tensors = self.make(way)
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        with noted_calls() as calls:
            results = run(compiled, tensors)
        assert not calls
        for a, e in zip(results, run(function, tensors), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)

    @on(EVERY)
    @pytest.mark.parametrize("channels", [64, 80, 1280])
    def test_a_large_mean_does_not_cancel(self, way, channels):
        function, tensors = self.make(way, shape=(9, channels), shift=1000.0)
        # torch's own float32 is as far off
        assert share(function(*tensors), reference(function, tensors)[0]) < 1e-4
        x, weight, bias = (t.detach() for t in tensors)
        # the last digit of the mean, 2.4e-7, divided by the square root of eps
        atol = 1e-6 if way.backend == "cuda" else 3e-4
        expected = bias.expand_as(x)
        torch.testing.assert_close(function(x.fill_(3.25), weight, bias), expected, rtol=0, atol=atol)

    @on(EVERY)
    def test_gelu_far_from_zero(self, way):
        x = torch.linspace(-6, 6, 2000, device=way.device).view(1, -1)
        weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
        actual = layer_norm(x, weight * x.std(correction=0).item(), bias, 1e-9, gelu=True)
        torch.testing.assert_close(actual.double(), F.gelu(x.double()), rtol=1e-6, atol=1e-6)

    @on(EVERY)
    def test_what_is_not_finite_stays_in_its_row(self, way):
        function, tensors = self.make(way, shape=(40, 80))
        with torch.no_grad():
            tensors[0][7, 3] = torch.inf
            tensors[0][9, 79] = torch.nan
        bad = torch.zeros(40, dtype=torch.bool, device=way.device)
        bad[[7, 9]] = True
        for tensor in run(function, tensors)[:2]:
            assert torch.equal(tensor.isfinite().all(dim=1), ~bad)

    @on(EVERY)
    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("space", [0, 32])
    def test_one_row_for_many(self, way, view, space):
        function, tensors = self.make(way, shape=(2, 3, 64 + space))
        large, weight, bias = (t.detach()[..., :64] for t in tensors)
        expanded = VIEWS[view](large)
        copied = run(function, leaves([expanded.clone(memory_format=torch.contiguous_format), weight, bias]))
        self.equal(run(function, leaves([expanded, weight, bias])), copied)

    @on(EVERY)
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_a_trace_sees_the_operator(self, way):
        function, (x, weight, bias) = self.make(way)
        constants = weight.detach(), bias.detach()
        traced = torch.jit.trace(lambda x: function(x, *constants), x.detach(), check_trace=False)
        assert f"layer_norm_{way.backend}" in str(traced.graph)

    @on("emulated interpreted triton")
    @pytest.mark.parametrize("wanted", range(3))
    def test_sums_that_nobody_wants_are_left_out(self, way, wanted):
        function, tensors = self.make(way)
        some = [t.detach().requires_grad_(index == wanted) for index, t in enumerate(tensors)]
        way.launches.clear()
        run(function, some)
        assert way.kernels() == ["forward", "backward", *(["sum_parts"] if wanted else [])]

    @on(EVERY)
    def test_statistics_are_kept_for_gradients_only(self, way, monkeypatch):
        kept = []

        def note(function):
            return lambda *arguments: kept.append(function(*arguments)) or kept[-1]

        for name in ("layer_norm", "_normalise"):  # with the dispatcher and without
            monkeypatch.setattr(way.module, name, note(getattr(way.module, name)))
        function, tensors = self.make(way, shape=(3, 64))
        function(*tensors)
        with torch.no_grad():
            function(*tensors)
        function(*(t.detach() for t in tensors))
        assert [tuple(statistics.shape) for _, statistics in kept] == [(3, 2), (0,), (0,)]

    @on("emulated")
    def test_many_rows_in_few_blocks(self, way, monkeypatch):
        monkeypatch.setattr(way.module, "multiprocessors", lambda device: 1)
        self.check(way, *self.make(way, shape=(1300, 64)))
        name, _, grid = way.launches[1]
        assert name == "layer_norm_backward_8x8"
        assert 1 < grid[0] <= 5

    @on("emulated")
    @pytest.mark.parametrize("shape", [(300, 32), (40, 256), (5, 1280), (5, 8192)], ids=str)
    def test_threads_in_the_other_order(self, way, shape, monkeypatch):
        function, tensors = self.make(way, shape=shape)
        expected = run(function, tensors)
        monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
        self.equal(run(function, tensors), expected)

    @on("interpreted triton")
    def test_more_programs_than_are_summed_at_once(self, way, monkeypatch):
        monkeypatch.setattr(way.module, "_SUM_PARTS", 4)
        self.check(way, *self.make(way, shape=(300, 64)))
        assert way.module._programs(300, 16, 8, way.device) > 4

    @on("cuda triton")
    @pytest.mark.xdist_group("large")  # one at a time: they need most of the memory of a GPU
    def test_more_than_2_to_the_31_elements(self, way):
        if torch.cuda.mem_get_info()[0] < 30 << 30:
            pytest.skip("needs 30 GiB of free memory")
        x, module = torch.randn(34_000_000, 64, device="cuda", dtype=BF16), way.module
        assert x.numel() > 2**31
        weight, bias = torch.randn(2, 64, device="cuda")
        output, statistics = module.layer_norm(x, weight, bias, EPS, False, BF16, True)
        few = module.layer_norm(x[-1000:], weight, bias, EPS, False, BF16, True)
        assert torch.equal(output[-1000:], few[0])
        del output
        grad = torch.zeros_like(x)
        grad[-1000:] = torch.randn_like(grad[-1000:])
        whole = module.layer_norm_backward(grad, x, weight, bias, statistics, False, True)
        part = module.layer_norm_backward(grad[-1000:], x[-1000:], weight, bias, few[1], False, True)
        # a row in its place in a block: another rounding of a few numbers
        assert share(whole[0][-1000:], part[0]) < 1e-5
        assert share(whole[1], part[1]) < 1e-5
        assert share(whole[2], part[2]) < 1e-5


def test_teams_have_room_for_a_row_and_not_much_to_spare():
    teams = {channels: cuda._team(channels) for channels in range(8, 8193, 8)}
    assert set(teams.values()) == set(cuda._TEAMS)
    for channels, (lanes, values) in teams.items():
        assert channels <= lanes * values <= max(32, 2.1 * channels) or channels > 1024


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_have_room_for_rows_and_not_much_to_spare(itemsize):
    for channels in range(16, 8193):
        for rows, chunks, block, warps in (
            triton._forward_tile(channels, itemsize),
            triton._backward_tile(channels, itemsize),
        ):
            assert channels <= chunks * block < max(32, 1.26 * channels + 16)
            assert rows * chunks * block <= 32 * warps * triton._FORWARD_VALUES
            assert 4 <= warps <= 16


def test_evenly_spaced_rows_are_not_copied():
    wide = torch.randn(3, 4, 160)
    for x, stride in (
        (wide, 160),
        (wide[..., 32:96], 160),
        (wide[:, :1], 640),
        (wide[:1, :1, 8:16], 8),
        (wide[0, 0], 160),
    ):
        memory, found = rows_in_memory(x)
        assert memory.data_ptr() == x.data_ptr()
        assert memory.is_contiguous()
        assert found == stride
    for x in (wide[:, :3], wide[..., ::2], wide[:, ::2, :80][:, :, 1:], wide[:1, :1].expand(3, 4, 160)):
        memory, found = rows_in_memory(x)
        assert torch.equal(memory, x)
        assert found == x.shape[-1]
