"""The gated convolution on every back end (`operator_tester.py`), and what is special about it: gates, cuts."""

import math

import pytest
import torch

from ops.claims import BF16, EVERY, FP16, FP32, FP64, leaves, on, reference, run, share
from ops.operator_tester import OperatorTester
from ops.ways import backend_of, noted_calls
from sa2depth.errors import ShapeError
from sa2depth.ops import gated_conv, use_backend
from sa2depth.ops.gated_conv import cuda, triton

ALL = "emulated interpreted gpu"
LAST = torch.channels_last


class TestGatedConv(OperatorTester):
    operator = "gated_conv"
    names = ("input", "kernel", "bias")
    autocast = "input"
    defaults = {
        "cpu": {"size": (4, 5)},
        "emulated": {"size": (7, 9)},
        "interpreted": {"size": (2, 5), "batch": 1},
        "cuda": {"size": (17, 31), "channels": 64, "scale": 0.3},
        "triton": {"size": (17, 31), "channels": 64, "scale": 0.3},
        "opcheck": {"size": (2, 3)},
    }
    bounds = {"emulated": 2e-6, "interpreted": 2e-6, "cuda": 1e-5, "triton": 1e-5}
    cases = [
        *[("emulated", {"size": size}) for size in ((7, 9), (1, 1), (1, 8), (5, 1), (2, 2), (3, 5))],
        *[("emulated", {"size": size}) for size in ((16, 18), (11, 33))],
        *[("interpreted triton", {"size": size, "batch": 2}) for size in ((1, 1), (1, 6), (5, 1), (3, 6))],
        *[
            ("gpu", {"size": size, "dtype": dtype})
            for size in ((1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (61, 79))
            for dtype in (FP32, BF16, FP16)
        ],
        *[("emulated", {"size": (4, 5), "channels": channels}) for channels in (4, 64, 68, 136)],
        *[("interpreted triton", {"size": (2, 3), "channels": channels}) for channels in (4, 36)],
        *[("gpu", {"size": (12, 23), "channels": channels}) for channels in (4, 68, 320, 5120)],
        *[
            ("emulated", {"size": size, "channels": 12, "dtype": dtype})
            for size in ((7, 9), (4, 32))
            for dtype in (BF16, FP16)
        ],
        ("interpreted triton", {"size": (3, 4), "channels": 12, "dtype": BF16}, 8e-3),
        ("interpreted triton", {"size": (3, 4), "channels": 12, "dtype": FP16}),
        *[
            ("emulated gpu", {"scale": scale, "dtype": dtype})
            for scale in (1e-3, 1.0, 4.0)
            for dtype in (FP32, BF16, FP16)
        ],
        ("emulated interpreted gpu", {"dtype": BF16, "others": BF16}, 2**-7),
        *[
            ("gpu", {"size": size, "batch": batch, "channels": channels, "dtype": dtype})
            for batch, size, channels in (
                (8, (15, 20), 2048),
                (2, (30, 40), 1024),
                (1, (120, 160), 1024),
                (1, (88, 304), 256),
                (1, (11, 38), 5120),
                (2, (61, 79), 68),
            )
            for dtype in (FP32, BF16, FP16)
        ],
    ]  # fmt: skip
    empty = [(ALL, {"batch": 0}), (ALL, {"size": (0, 6), "batch": 2})]
    declines = [
        ("emulated gpu", {"channels": 32}, ""),
        ("emulated gpu", {"size": (800, 1000), "batch": 8, "channels": 1024}, ""),  # more than 2**31 elements
        (ALL, {"dtype": FP64}, "float64"),
        ("interpreted triton", {"others": FP64}, r"the kernel is torch\.float64"),
        (ALL, {"device": "meta"}, "on meta"),
        ("cuda triton", {"device": "cpu"}, "on cpu"),
        ("emulated cuda", {"size": (50000, 50000), "channels": 4}, "shape"),
        ("interpreted triton", {"size": (1, 2**28), "batch": 2}, "shape"),
    ]
    capture = [("gpu", {"size": (40, 64)})]
    sizes_that_change = ({"size": (17, 31)}, {"size": (18, 30)})

    def inputs(self, draw, size, batch=2, channels=8, scale=0.5):
        x = draw(batch, channels, *size).to(memory_format=LAST)
        return {}, [x, scale * draw(channels, 4, 3, 3), scale * draw(channels)]

    def check_layout(self, results, tensors):
        assert results[0].is_contiguous(memory_format=LAST)

    @on("cpu", every_path=True, inference=True)
    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (4, 16), (3, 32), (7, 33), (2, 65)], ids=str)
    @pytest.mark.parametrize("options", [{}, {"channels": 20, "batch": 1}, {"batch": 0}], ids=str)
    def test_inference_on_the_cpu(self, way, size, options):
        function, tensors = self.make(way, size=size, scale=0.3, **options)
        x, kernel, bias = (t.detach().contiguous() for t in tensors)
        expected = reference(function, tensors)[0]
        with torch.no_grad():
            actual = function(x, kernel, bias)
            strided = function(x.transpose(2, 3).contiguous().transpose(2, 3), kernel, bias)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(strided, actual, rtol=0, atol=0)

    @on("cpu", inference=True)
    def test_the_cpu_trains_in_torch(self, way):
        function, tensors = self.make(way)
        assert torch.autograd.gradcheck(function, leaves([t.double() for t in tensors]))
        results = run(function, tensors)
        assert all(t.isfinite().all() for t in results)

    @on("cpu", inference=True)
    def test_inference_obeys_the_rules_of_torch_library(self, way):
        _, tensors = self.make(way)
        torch.library.opcheck(backend_of(way).run, tuple(t.detach() for t in tensors), atol=1e-5, rtol=1e-4)

    @on("emulated interpreted triton cuda")
    @pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 4.0])
    def test_each_number_of_gates_that_are_nearly_closed_or_open(self, way, dtype, scale):
        function, tensors = self.make(
            way, dtype, scale=scale, size=(3, 4) if way.kind == "interpreted" else (40, 24)
        )
        output, expected = function(*tensors), reference(function, tensors)[0]
        # the rounding of the output, and that of the fast tanh; where the convolution's terms cancel their own is left
        most = {FP32: 2e-5, BF16: 2**-8 + 2**-10, FP16: 2**-11 + 2**-13}[dtype]
        most *= way.rounding(BF16) * 2**8 if dtype == BF16 else 1
        torch.testing.assert_close(output.double(), expected, rtol=most, atol=2e-5 * max(scale, 1))

    @on("emulated")
    @pytest.mark.parametrize("processors", [1, 5, 60])
    @pytest.mark.parametrize("size", [(23, 6), (9, 20)], ids=str)
    def test_any_way_to_cut_the_map_gives_the_same(self, way, processors, size, monkeypatch):
        function, tensors = self.make(way, size=size)
        expected = run(function, tensors)
        way.launches.clear()
        monkeypatch.setattr(way.module, "multiprocessors", lambda device: processors)
        actual = run(function, tensors)
        self.equal(actual[:2], expected[:2])  # which nothing is added up for
        assert all(share(a, e) < 1e-6 for a, e in zip(actual[2:], expected[2:], strict=True))
        assert processors == 1 or max(math.prod(grid) for _, _, grid in way.launches) > 2

    @on("emulated")
    @pytest.mark.parametrize("segments", range(1, 8))
    @pytest.mark.parametrize("parts", [1, 3, 40])
    def test_every_segment_and_part(self, way, segments, parts, monkeypatch):
        rows = math.ceil(13 / math.ceil(13 / segments))
        monkeypatch.setattr(way.module, "_cut", lambda name, x: (rows, parts))
        self.check(way, *self.make(way, size=(13, 5), channels=4))

    @on("interpreted triton")
    @pytest.mark.parametrize(("rows", "held"), [(1, 1), (2, 40), (3, 2), (5, 3)])
    def test_any_way_to_cut_the_map(self, way, rows, held, monkeypatch):
        monkeypatch.setattr(way.module, "_rows_of_segment", lambda *_: rows)
        monkeypatch.setattr(way.module, "_programs_held", lambda device: held)
        self.check(way, *self.make(way, size=(5, 5), channels=4))

    @on(EVERY)
    def test_channels_last_is_not_copied(self, way):
        function, tensors = self.make(way)
        with noted_calls() as calls:
            function(*tensors)
        assert calls[0][1][0].data_ptr() == tensors[0].data_ptr()

    @on(EVERY)
    def test_what_is_not_finite_stays_where_it_is(self, way):
        function, tensors = self.make(way, size=(3, 6), batch=2)
        x, kernel, bias = (t.detach() for t in tensors)
        expected = function(x, kernel, bias)
        x[0, 1, 1, 5] = torch.nan  # in the last column of the first image
        actual = function(x, kernel, bias)
        touched = torch.zeros_like(x, dtype=torch.bool)
        touched[0, :4, :, 4:] = True
        assert actual[touched].isnan().all()
        torch.testing.assert_close(actual[~touched], expected[~touched], rtol=0, atol=0)

    @on("cuda triton")
    @pytest.mark.xdist_group("large")  # one at a time: they need most of the memory of a GPU
    def test_more_than_2_to_the_31_elements(self, way):
        if torch.cuda.mem_get_info()[0] < 40 << 30:
            pytest.skip("needs 40 GiB of free memory")
        _, (_, *others) = self.make(way, channels=256)
        (kernel, bias), module = (t.detach() for t in others), way.module
        x = torch.randn(3, 1700, 1800, 256, device="cuda", dtype=BF16)
        grad = torch.randn_like(x)
        assert x.numel() > 2**31
        assert torch.equal(module.gated_conv(x, kernel, bias)[2:], module.gated_conv(x[2:], kernel, bias))
        whole = module.gated_conv_backward(grad, x, kernel, bias)[0][2:].clone()
        assert torch.equal(whole, module.gated_conv_backward(grad[2:], x[2:], kernel, bias)[0])

    @on("triton")
    def test_one_compilation_for_all_sizes(self, way):
        from sa2depth.ops.gated_conv import triton_kernels as kernels

        def compiled():
            return sum(
                len(kernel.device_caches[torch.cuda.current_device()][0])
                for kernel in (kernels.convolve, kernels.weight_gradients)
            )

        run(*self.make(way, size=(16, 16)))
        before = compiled()
        for size, batch in (((1, 1), 1), ((17, 31), 2), ((32, 48), 1)):
            run(*self.make(way, size=size, batch=batch, channels=68))
        assert compiled() == before


def test_wrong_shapes_are_named():
    x, kernel, bias = torch.rand(2, 8, 4, 5), torch.rand(8, 4, 3, 3), torch.rand(8)
    for backend in ("auto", "cuda", "triton"):
        with use_backend(backend):
            with pytest.raises(ShapeError, match="multiple of 4"):
                gated_conv(x[:, :6], kernel, bias)
            with pytest.raises(ShapeError, match=r"\(8, 3, 3, 3\)"):
                gated_conv(x, kernel[:, :3], bias)


@pytest.mark.parametrize("name", cuda._SETS)
def test_cuts(name):
    for shape in (
        (8, 120, 160, 1024),
        (1, 120, 160, 1024),
        (8, 15, 20, 2048),
        (1, 11, 38, 5120),
        (3, 1, 1, 4),
    ):
        segments, parts = cuda._fastest_cut(cuda._SETS[name], *shape, 264)
        rows = math.ceil(shape[1] / segments)
        assert (segments - 1) * rows < shape[1] <= segments * rows
        assert 1 <= parts <= cuda._MOST_PARTS


@pytest.mark.parametrize("height", [1, 15, 120, 121])
def test_segments_are_never_empty(height):
    for strips, held in ((1, 1056), (320, 33), (2560, 1056), (10240, 1056)):
        rows = triton._rows_of_segment(strips, height, held)
        assert 1 <= rows <= height
        assert -(-height // rows) <= triton._MOST_SEGMENTS
