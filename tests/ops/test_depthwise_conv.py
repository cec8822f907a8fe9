"""Depthwise convolution on every back end (`operator_tester.py`), and what is special: tiles, channels last."""

import pytest
import torch
import torch.nn.functional as F

from ops.claims import BF16, EVERY, FP16, FP32, FP64, on, run, share
from ops.operator_tester import OperatorTester
from ops.ways import noted_calls
from sa2depth.errors import ConfigError
from sa2depth.ops.runtime import triton as machine

ALL = "emulated interpreted gpu"
LAST = torch.channels_last
LEVELS = (
    (8, 32, (120, 160)),
    (8, 64, (60, 80)),
    (8, 64, (120, 160)),
    (8, 128, (30, 40)),
    (8, 256, (15, 20)),
    (8, 512, (15, 20)),
    (1, 512, (15, 20)),
    (2, 160, (88, 304)),
    (8, 640, (11, 38)),
    (1, 1280, (11, 38)),
)


class TestDepthwiseConv(OperatorTester):
    operator = "depthwise_conv"
    names = ("input", "weight", "bias")
    autocast = "input"
    defaults = {
        "emulated": {"size": (9, 11)},
        "interpreted": {"size": (4, 9), "batch": 1},
        "cuda": {"size": (17, 31), "channels": 32},
        "triton": {"size": (17, 31), "channels": 32},
        "opcheck": {"size": (2, 3)},
    }
    bounds = {"emulated": 1e-6, "interpreted": 2e-6, "cuda": 5e-6, "triton": 5e-6}
    half = {BF16: 4e-3, FP16: 5e-4}
    cases = [
        *[
            ("emulated", {"size": size, "kernel": kernel})
            for size in ((9, 11), (1, 1), (1, 47), (35, 2), (17, 40))
            for kernel in (3, 11)
        ],
        *[("interpreted triton", {"size": size, "batch": 2}) for size in ((1, 1), (1, 23), (35, 1), (5, 11))],
        *[
            ("interpreted triton", {"size": size, "kernel": kernel})
            for size, kernel in (((1, 1), 11), ((3, 22), 11), ((7, 9), 5), ((2, 5), 7), ((4, 3), 9))
        ],
        *[
            ("gpu", {"size": size, "kernel": kernel})
            for size in ((1, 1), (1, 63), (65, 1), (17, 31), (40, 64), (61, 79))
            for kernel in (3, 11)
        ],
        *[
            ("emulated", {"size": (6, 23), "batch": 1, "channels": channels, "kernel": kernel})
            for channels in (8, 16, 24, 32, 80)
            for kernel in (3, 5, 7, 9, 11)
        ],
        *[
            ("interpreted triton", {"size": (2, 3), "channels": channels, "kernel": kernel})
            for channels, kernel in ((3, 3), (24, 3), (32, 5), (64, 3), (128, 3), (80, 5))
        ],
        *[
            ("gpu", {"size": (19, 43), "channels": channels, "kernel": kernel})
            for channels in (8, 24, 80, 160, 264)
            for kernel in (3, 5, 7, 9, 11)
        ],
        ("emulated", {"size": (3, 5), "batch": 1, "channels": 264}),
        ("emulated", {"size": (3, 5), "batch": 1, "channels": 64, "kernel": 11}),
        (ALL, {"bias": False}),
        ("interpreted gpu", {"bias": False, "kernel": 5}),
        ("emulated", {"bias": False, "kernel": 7}),
        # half precision: sums are float32, what is lost is one rounding
        *[
            (kinds, {"size": size, "channels": channels, "kernel": kernel, "dtype": dtype}, "rounded")
            for kinds, size, kernel, channels in (
                ("emulated", (9, 22), 3, 16),
                ("emulated", (9, 22), 5, 8),
                ("emulated", (9, 22), 11, 32),
                ("interpreted triton", (3, 11), 3, 16),
                ("interpreted triton", (3, 11), 5, 20),
                ("gpu", (40, 64), 3, 32),
                ("gpu", (40, 64), 5, 32),
                ("gpu", (40, 64), 11, 32),
            )
            for dtype in (BF16, FP16)
        ],
        ("emulated gpu", {"kernel": 5, "dtype": BF16, "others": BF16}, 4e-3),
        ("interpreted", {"dtype": BF16, "others": BF16}, 8e-3),
        # sizes of the networks
        *[
            ("gpu", {"batch": batch, "channels": channels, "size": size, "kernel": kernel, "dtype": dtype})
            for batch, channels, size in LEVELS
            for kernel in (3, 11)
            for dtype in (FP32, BF16, FP16)
        ],
        ("cuda", {"size": (6, 7), "batch": 4000, "channels": 8}),
        ("triton", {"size": (6, 7), "batch": 70000, "channels": 8}),
    ]
    empty = [
        (kinds, {"kernel": kernel, **options})
        for kinds, kernel in ((ALL, 3), ("emulated gpu", 11))
        for options in ({"batch": 0}, {"size": (0, 5)})
    ]
    declines = [
        ("emulated gpu", {"size": (5, 6), "channels": 8}, ""),
        ("emulated gpu", {"size": (4000, 5000), "batch": 8, "channels": 32}, ""),  # more than 2**31 elements
        (ALL, {"dtype": FP64}, "float64"),
        (ALL, {"device": "meta"}, "on meta"),
        ("cuda triton", {"device": "cpu"}, "on cpu"),
        ("emulated cuda", {"channels": 12}, "12 channels"),
        (ALL, {"kernel": 13}, "not 13x13"),
        (ALL, {"size": (4000, 5000), "batch": 1, "channels": 256}, "shape"),
        ("emulated cuda", {"size": (4, 4), "batch": 70000, "channels": 8}, "shape"),
    ]
    capture = [("gpu", {"size": (40, 64), "kernel": kernel}) for kernel in (3, 11)]
    compiled_for = ({"channels": 32}, {"channels": 32, "kernel": 11})
    sizes_that_change = ({"size": (17, 31), "kernel": 11}, {"size": (18, 30), "kernel": 11})

    def inputs(self, draw, size, batch=2, channels=16, kernel=3, bias=True):
        x = draw(batch, channels, *size).to(memory_format=LAST)
        return {}, [x, draw(channels, 1, kernel, kernel), draw(channels) if bias else None]

    def check_layout(self, results, tensors):
        assert all(t.is_contiguous(memory_format=LAST) for t in results[:2])

    def bound(self, way, tensors):
        return "rounded norm" if tensors[0].dtype != FP32 else self.bounds[way.kind]

    @on("emulated interpreted triton")
    @pytest.mark.parametrize("kernel", [3, 11])
    def test_many_tiles_in_few_blocks(self, way, kernel, monkeypatch):
        monkeypatch.setattr(way.module, "multiprocessors", lambda device: 1)
        if way.kind == "emulated":
            self.check(way, *self.make(way, size=(41, 70), batch=3, kernel=kernel))
            grids = {name: grid for name, _, grid in way.launches}
            assert grids["depthwise_conv_backward_weight" + "_3x3" * (kernel == 3)] == (2, 1, 1)
            return
        monkeypatch.setattr(way.module, "_WEIGHT_PROGRAMS", 1)
        for side, size, rows in (
            ((3, (5, 19), 2), (3, (3, 130), 3)) if kernel == 3 else ((5, (5, 17), 3), (7, (4, 9), 3))
        ):
            monkeypatch.setattr(way.module, "rows_of_least_time", lambda *_, rows=rows: rows)
            self.check(way, *self.make(way, size=size, kernel=side, channels=16, batch=1))

    @on("emulated")
    def test_rows_of_a_thread_follow_the_number_of_multiprocessors(self, way, monkeypatch):
        grids = []
        for count in (1, 1000):
            monkeypatch.setattr(way.module, "multiprocessors", lambda device, count=count: count)
            way.launches.clear()
            self.check(way, *self.make(way, size=(40, 20), channels=32))
            grids.append(way.launches[0][2])
        assert [grid[1] for grid in grids] == [1, 40]

    @on("emulated")
    def test_smaller_tiles_where_there_is_little_shared_memory(self, way, monkeypatch):
        case = self.make(way, size=(30, 8), batch=1, channels=32, kernel=11)
        self.check(way, *case)
        monkeypatch.setattr(way.module, "shared_bytes_limit", lambda device: 99 * 1024)
        self.check(way, *case)
        assert [grid[1] for name, _, grid in way.launches if name.endswith("forward")] == [2, 2, 3, 3]

    @on("emulated")
    def test_threads_in_the_other_order(self, way, monkeypatch):
        function, tensors = self.make(way, size=(19, 23), kernel=11)
        expected = run(function, tensors)
        monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
        self.equal(run(function, tensors), expected)

    @on(EVERY)
    @pytest.mark.parametrize("kernel", [3, 11])
    def test_what_is_not_finite_stays_where_it_belongs(self, way, kernel):
        function, tensors = self.make(
            way, size=(16, 30) if way.kind != "interpreted" else (9, 13), kernel=kernel
        )
        with torch.no_grad():
            tensors[0][0, 0, 8, 12] = torch.inf
            tensors[1][1, 0, 0, 0] = torch.inf
        output = function(*tensors).detach()
        expected = F.conv2d(*(t.double() for t in tensors), padding=kernel // 2, groups=tensors[0].shape[1])
        others = [0, *range(2, output.shape[1])]
        assert torch.equal(output.isfinite()[:, others], expected.isfinite()[:, others])
        assert output[:, 2:].isfinite().all()

    @on("emulated")
    @pytest.mark.parametrize("kernel", [3, 11])
    def test_three_launches_backwards(self, way, kernel):
        run(*self.make(way, kernel=kernel))
        assert len(way.launches) == 4

    @on("emulated interpreted triton")
    @pytest.mark.parametrize("wanted", range(3))
    def test_launches_that_nobody_wants_are_left_out(self, way, wanted):
        function, tensors = self.make(way, kernel=5)
        some = [t.detach().requires_grad_(index == wanted) for index, t in enumerate(tensors)]
        way.launches.clear()
        run(function, some)
        first, again, weight = ("forward", "forward", "backward_weight")
        if way.backend == "triton":
            first, again, weight = "convolve", "convolve", "weight_gradient"
        assert way.kernels() == ([first, again] if wanted == 0 else [first, weight, "sum_chunks"])

    @on(EVERY)
    def test_channels_last_is_not_copied(self, way):
        function, tensors = self.make(way)
        with noted_calls() as calls:
            function(*tensors)
        assert calls[0][1][0].data_ptr() == tensors[0].data_ptr()

    @on(EVERY)
    @pytest.mark.parametrize("kernel", [3, 5, 11])
    def test_autocast_is_that_of_conv2d(self, way, kernel):
        function, tensors = self.make(way, kernel=kernel)
        with torch.autocast(way.device.type, BF16):
            output = function(*tensors)
            conv2d = F.conv2d(*tensors, padding=kernel // 2, groups=tensors[0].shape[1])
        assert output.dtype == conv2d.dtype == BF16
        assert share(output, conv2d) < 2e-2

    @on("interpreted triton")
    def test_autocast_to_a_dtype_that_the_device_lacks(self, way, monkeypatch):
        function, tensors = self.make(way, size=(1, 1))
        monkeypatch.setattr(machine, "_why_not_on", lambda *a: "there is no bfloat16" if a[-1] else "")
        function(*tensors)
        with torch.autocast(way.device.type, BF16), pytest.raises(ConfigError, match="no bfloat16"):
            function(*tensors)

    @on("cuda triton")
    @pytest.mark.parametrize("kernel", [3, 11])
    def test_the_same_bits_at_full_size(self, way, kernel):
        function, tensors = self.make(way, BF16, size=(60, 80), batch=4, channels=64, kernel=kernel)
        self.equal(run(function, tensors), run(function, tensors))

    @on("triton")
    def test_few_compilations_for_all_sizes(self, way):
        from sa2depth.ops.depthwise_conv import triton_kernels as kernels

        def compiled(kernel):
            return len(kernel.device_caches[torch.cuda.current_device()][0])

        before = [compiled(kernel) for kernel in (kernels.convolve, kernels.weight_gradient)]
        for batch, size in ((1, (16, 16)), (1, (17, 1)), (2, (9, 31)), (16, (120, 160)), (3, (121, 163))):
            run(*self.make(way, size=size, batch=batch, channels=48, kernel=7))
        after = [compiled(kernel) for kernel in (kernels.convolve, kernels.weight_gradient)]
        assert after[0] - before[0] <= 2 * 2 * 2  # strips, directions, heights below 32 and above
        assert after[1] - before[1] == 1

    @on("cuda triton")
    @pytest.mark.parametrize("kernel", [3, 11])
    @pytest.mark.xdist_group("large")  # one at a time: they need most of the memory of a GPU
    def test_more_than_2_to_the_31_elements(self, way, kernel):
        if torch.cuda.mem_get_info()[0] < 40 << 30:
            pytest.skip("needs 40 GiB of free memory")
        x, module = torch.randn(5, 2048, 4100, 64, device="cuda", dtype=BF16), way.module
        assert x.numel() > 2**31
        weight = torch.randn(64, 1, kernel, kernel, device="cuda")
        output = module.depthwise_conv(x, weight, None)
        assert torch.equal(output[4:], module.depthwise_conv(x[4:], weight, None))
        del output
        grad = torch.zeros_like(x)
        grad[4] = torch.randn_like(grad[4])
        whole = module.depthwise_conv_backward(grad, x, weight, True, True, True)
        part = module.depthwise_conv_backward(grad[4:], x[4:], weight, True, True, True)
        assert torch.equal(whole[0][4:], part[0])
        assert share(whole[1], part[1]) < 1e-4
        assert share(whole[2], part[2]) < 1e-4
