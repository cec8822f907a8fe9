"""DCNv3 on every back end (`operator_tester.py`), and what is special about it: offsets, exact sums, joined points."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.claims import BF16, EVERY, FP16, FP32, FP64, SMALL, leaves, on, reference, run, share
from ops.operator_tester import OperatorTester
from sa2depth.ops import dcnv3, dcnv3_fused, use_backend

ALL = "cpu emulated interpreted gpu"


class TestDcnv3(OperatorTester):
    operator = "dcnv3"
    names = ("input", "offset", "mask")
    any_order = (1,)
    rounded_atol = 1e-5
    defaults = {
        "cpu": {"size": (6, 9)},
        "emulated": {"size": (5, 6)},
        "interpreted": {"size": (3, 5), "batch": 1},
        "cuda": {"size": (17, 31)},
        "triton": {"size": (17, 31)},
    }
    cases = [
        (ALL, {}),
        *[("emulated", {"size": size}) for size in ((9, 11), (1, 1), (1, 20), (17, 2), (8, 16))],
        *[("interpreted triton", {"size": size}) for size in ((1, 1), (1, 9), (5, 2))],
        ("interpreted triton", {"batch": 2, "size": (3, 9)}),
        ("emulated", {"size": (9, 11), "anywhere": True}),
        *[("gpu", {"size": size}) for size in ((1, 1), (1, 63), (65, 1), (40, 64), (61, 79))],
        (ALL, {"offset_scale": 2.0}),
        (ALL, {"offset_scale": 0.5, "dilation": 2, "padding": 2}),
        ("cpu", {"stride": 2, "offset_scale": 1.5}),
        ("emulated interpreted gpu", {"stride": 2, "size": (7, 9)}),
        ("emulated interpreted gpu", {"padding": 0}),
        ("emulated", {"padding": 3}),
        (ALL, {"remove_center": True}),
        ("emulated", {"remove_center": True, "stride": 3, "offset_scale": 1.5}),
        (ALL, {"softmax": True}),
        (ALL, {"softmax": True, "remove_center": True, "offset_scale": 2.0}),
        ("interpreted triton", {"softmax": True, "remove_center": True, "stride": 3, "padding": 3}),
        ("cpu", {"softmax": True, "remove_center": True, "groups": 3}),
        ("cpu", {"softmax": True, "kernel_size": 5, "padding": 2}),
        ("cpu", {"kernel_size": 5, "padding": 2}),
        ("cpu", {"kernel_size": 2, "padding": 0}),
        ("cpu", {"group_channels": 5}),
        ("cpu", {"group_channels": 37, "groups": 1}),
        ("interpreted triton", {"groups": 1, "group_channels": 4, "size": (2, 3)}),
        *[
            (kinds, {"groups": groups, "group_channels": channels, "softmax": softmax})
            for groups, channels in ((1, 8), (3, 16), (5, 32), (4, 64))
            for kinds, softmax in (("emulated gpu", False), ("emulated", True))
        ],
        ("interpreted", {"groups": 3, "group_channels": 8, "size": (2, 3)}),
        ("interpreted", {"groups": 2, "group_channels": 32, "size": (2, 3)}),
        ("interpreted", {"groups": 4, "group_channels": 64, "size": (2, 3)}),
        # half precision of the input costs one rounding, that of offsets and masks theirs
        ("emulated interpreted gpu", {"dtype": BF16}, "rounded"),
        ("emulated interpreted gpu", {"dtype": BF16, "group_channels": 64}, "rounded"),
        ("emulated gpu", {"dtype": FP16, "group_channels": 8}, "rounded"),
        ("interpreted triton", {"dtype": FP16, "group_channels": 4}, "rounded"),
        ("gpu", {"dtype": FP16, "size": (40, 64)}, "rounded"),
        ("gpu", {"dtype": BF16, "others": BF16, "size": (40, 64)}),
        ("gpu", {"dtype": FP16, "others": FP16, "size": (40, 64)}),
        ("emulated", {"others": BF16, "size": (6, 40)}, (3e-6, 3e-3)),  # sampled in float32
        ("emulated", {"others": FP16, "size": (6, 40)}, (3e-6, 4e-4)),
        ("interpreted triton", {"others": BF16, "size": (1, 33), "groups": 1}, (2e-6, 8e-3)),
        ("emulated gpu", {"others": FP16, "offset_dtype": FP32}),
        # offsets and logits in one tensor, with numbers behind them that nobody reads
        ("cpu", {"joined": 1}),
        ("cpu", {"joined": 1, "groups": 3, "group_channels": 5}),
        ("cpu", {"joined": 1, "remove_center": True}),
        *[
            (kinds, {"joined": more, "groups": groups, "others": dtype})
            for groups, more, kinds in ((2, 0, "emulated"), (2, 10, "emulated"), (3, 0, "emulated"), (3, 1, "emulated"))
            for dtype in (FP32, BF16)
        ],
        *[
            ("gpu", {"joined": more, "groups": groups, "others": dtype})
            for groups, more in ((4, 0), (4, 4), (5, 0), (5, 1))
            for dtype in (FP32, BF16, FP16)
        ],
        ("interpreted triton", {"joined": 10}),
        ("interpreted triton", {"joined": 0, "groups": 3}),
        ("interpreted triton", {"joined": 0, "others": FP16}),
        ("interpreted triton", {"joined": 1, "groups": 3, "others": BF16}),
        # points out of the kernels' windows and out of the image
        ("emulated", {"size": (20, 24), "batch": 1, "spread": 5.0}, 1e-5),
        ("emulated", {"size": (20, 24), "batch": 1, "spread": 100.0}, 1e-5),
        ("interpreted triton", {"size": (4, 11), "groups": 1, "spread": 5.0}, 1e-5),
        ("interpreted triton", {"size": (4, 11), "groups": 1, "spread": 100.0}, 1e-5),
        ("gpu", {"size": (61, 79), "spread": 6.0}),
        ("gpu", {"size": (61, 79), "spread": 200.0}),
        ("emulated", {"size": (12, 19), "batch": 1, "far": True}, 1e-5),
        ("emulated", {"size": (12, 19), "batch": 1, "far": True, "softmax": True}, 1e-5),
        # sizes of the networks
        *[
            ("gpu", {"size": size, "groups": n, "offset_scale": scale, "joined": 0, "dtype": dtype, "others": dtype})
            for size, n, scale in (
                ((120, 160), 4, 1.0),
                ((60, 80), 8, 1.0),
                ((15, 20), 32, 1.0),
                ((120, 160), 10, 2.0),
                ((15, 20), 80, 2.0),
            )
            for dtype in (FP32, BF16, FP16)
        ],
        ("gpu", {"size": (120, 160), "groups": 4}),
    ]  # fmt: skip
    half = {BF16: 4e-3, FP16: 5e-4}
    empty = [
        (ALL, {"batch": 0}),
        ("emulated interpreted gpu", {"size": (2, 5), "padding": 0}),
    ]
    declines = [
        ("emulated gpu", {"size": (5, 6)}, ""),
        ("emulated gpu", {"size": (4000, 5000), "batch": 8}, ""),  # more than 2**31 elements
        ("cpu emulated interpreted gpu", {"size": (5, 6), "dtype": FP64}, "float64"),
        ("cpu emulated interpreted gpu", {"size": (5, 6), "device": "meta"}, "on meta"),
        ("cuda triton", {"size": (5, 6), "device": "cpu"}, "on cpu"),
        ("emulated interpreted gpu", {"size": (5, 6), "group_channels": 12}, "12 channels"),
        ("emulated interpreted gpu", {"size": (5, 6), "kernel_size": 5, "padding": 2}, "3x3, not 5x5"),
        ("emulated cuda", {"size": (100, 40000), "batch": 1, "stride": 9}, "shape"),
        ("cpu", {"size": (9, 9), "kernel_size": 9, "padding": 4}, "9 x 9 points"),
    ]
    compiled_for = ({"softmax": True}, {})

    def inputs(
        self, draw, size, batch=2, groups=2, group_channels=16, spread=1.0, anywhere=False, far=False, joined=None,
        offset_dtype=None, softmax=False, **options,
    ):  # fmt: skip
        side, stride = options.get("kernel_size", 3), options.get("stride", 1)
        points = side**2 - options.get("remove_center", False)
        extent = options.get("dilation", 1) * (side - 1) + 1
        rows, columns = ((n + 2 * options.get("padding", 1) - extent) // stride + 1 for n in size)
        x = draw(batch, *size, groups * group_channels)
        offset = spread * draw(batch, rows, columns, groups * points * 2)
        if not anywhere:  # between whole pixels, where slopes jump and the last bit of a coordinate decides
            offset = (8 * offset).floor() / 8 + 1 / 16
        if far:
            offset[:, ::3, ::2] *= 7
        mask = draw(batch, rows, columns, groups, points)
        options["groups"] = groups
        if joined is not None:
            mask = mask.flatten(3)
            return {**options, "fused": True}, [x, torch.cat((offset, mask, mask[..., :joined]), dim=-1)]
        mask = (mask if softmax else mask.softmax(dim=-1)).flatten(3)
        return {**options, "softmax": softmax}, [x, offset, mask]

    def make(self, way, *arguments, offset_dtype=None, **options):
        function, tensors = super().make(way, *arguments, **options)
        if offset_dtype:
            tensors[1] = tensors[1].detach().to(offset_dtype).requires_grad_()
        return function, tensors

    def function(self, fused=False, **keywords):
        return lambda *tensors: (dcnv3_fused if fused else dcnv3)(*tensors, **keywords)

    def output_shape(self, tensors):
        return *tensors[1].shape[:3], tensors[0].shape[-1]

    def gather(self, way, **options):
        """Inputs to be changed."""
        function, tensors = self.make(way, **options)
        return function, [t.detach() for t in tensors]

    @on(EVERY)
    @pytest.mark.parametrize("more", [0, 1, 10])
    def test_numbers_behind_the_points_have_no_gradient(self, way, more):
        function, tensors = self.make(way, joined=more)
        gradient = run(function, tensors)[2]
        assert gradient.shape == tensors[1].shape
        assert gradient.is_contiguous()
        assert not gradient[..., tensors[1].shape[-1] - more :].any() or not more

    @on("cpu emulated", every_path=True)
    @pytest.mark.parametrize("size", [(16, 16), (4, 16), (16, 3)], ids=str)
    def test_points_a_hairs_breadth_inside(self, way, size):
        # 16 - 2^-20 is a float32, 17 - 2^-20 is none: whoever adds 1 first lands on a pixel outside. Offsets are as
        # small as this after the first steps of every training.
        function, (x, offset, mask) = self.gather(way, size=size, batch=1)
        self.check(way, function, leaves([x, torch.full_like(offset, -(2.0**-20)), mask]))

    @on(SMALL, every_path=True)
    def test_logits_of_any_size(self, way):
        function, (x, offset, logits) = self.gather(way, softmax=True)
        logits *= 100
        logits[0, 0, 0, 3] = -torch.inf
        self.check(way, function, leaves([x, offset, logits]), bound=1e-5)
        logits[0, 0, 0, 4] = torch.nan
        output = function(x, offset, logits)
        assert output[0, 0, 0, :16].isnan().all()
        assert output.isnan().sum() == 16

    @on(EVERY, every_path=True)
    def test_slopes_at_whole_pixels_are_those_to_the_right_and_below(self, way):
        function, (x, offset, mask) = self.gather(way)
        actual = run(function, leaves([x, torch.zeros_like(offset), mask]))
        expected = reference(
            function, leaves([x.double(), torch.full_like(offset, 1e-7, dtype=FP64), mask.double()])
        )
        assert actual[2].unflatten(-1, (2, 9, 2))[:, 0, :, :, ::3].any()  # also at -1
        bounds = {"rtol": 1e-4, "atol": 1e-5} if way.kind == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), e, **bounds)

    @on(EVERY)
    def test_points_that_are_no_place_read_nothing(self, way):
        function, tensors = self.make(way)
        expected = function(*tensors)
        with torch.no_grad():
            tensors[1].unflatten(-1, (2, 9, 2))[0, 2, 3, 1] = torch.tensor(
                [
                    [torch.nan, 0],
                    [torch.inf, 0],
                    [-1e30, 1e38],
                    [3e9, -torch.inf],
                    [1e30, torch.nan],
                    [-1e30, 0],
                ]
                * 3
            )[:9]
        actual = run(function, tensors)
        assert all(t.isfinite().all() for t in actual)
        assert not actual[0][0, 2, 3, 16:].any()
        untouched = torch.ones_like(expected, dtype=torch.bool)
        untouched[0, 2, 3, 16:] = False
        assert torch.equal(actual[0][untouched], expected[untouched])

    @on("emulated interpreted triton cuda")
    def test_pixels_that_are_not_read_do_not_count(self, way):
        function, (x, offset, mask) = self.gather(way, size=(6, 7), batch=1)
        offset.zero_()
        x[0, 0, 0] = torch.inf
        # a pixel above: on row 0 the point would lie outside, and must not read row 0 instead
        offset.unflatten(-1, (2, 9, 2))[..., 1] = -3.0
        output = function(x, offset, mask)
        assert output[0, 0, 0].isfinite().all()
        assert output[0, 4, 0].isinf().any()

    @on("emulated")
    def test_far_points_reach_the_border_and_no_further(self, way):
        function, (x, offset, mask) = self.gather(way, size=(20, 20), batch=1, groups=1)
        offset.uniform_(-22, 22, generator=torch.Generator().manual_seed(2))
        self.check(way, function, leaves([x, offset, mask]), bound=1e-5)

    @on("emulated")
    @pytest.mark.parametrize("warps", [1, 40, 10000])
    def test_strips_of_any_length(self, way, warps, monkeypatch):
        monkeypatch.setattr(way.module, "_warps", lambda device: warps)
        self.check(way, *self.make(way, size=(23, 10), batch=1, spread=3.0))

    @on("emulated interpreted triton cuda")
    @pytest.mark.parametrize(
        ("spread", "dtype", "softmax"),
        [(1.0, FP32, False), (1.0, FP32, True), (20.0, BF16, False), (20.0, FP32, False)],
    )
    def test_deterministic_sums_are_exact(self, way, dtype, spread, softmax):
        function, tensors = self.make(way, dtype, spread=spread, softmax=softmax)
        torch.use_deterministic_algorithms(True)
        self.equal(run(function, tensors), run(function, tensors), any_order=False)
        bound = 1e-5 if dtype == FP32 else way.rounding(dtype)
        self.check(way, function, tensors, bound)
        if way.kind == "emulated":
            assert dict(way.launches[-1][1].macros)["DETERMINISTIC"] == 1

    @on("emulated interpreted triton cuda")
    @pytest.mark.parametrize("size", [1e-30, 1e30, 0.0])
    def test_deterministic_sums_of_any_size(self, way, size):
        function, tensors = self.make(way)
        grad = size * torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(way.device)
        exact = [t.detach().double().requires_grad_() for t in tensors]
        with use_backend("torch"):
            (expected,) = torch.autograd.grad(function(*exact), exact[:1], grad.double())
        torch.use_deterministic_algorithms(True)
        (actual,) = torch.autograd.grad(function(*tensors), tensors[:1], grad)
        assert share(actual.double() / (size or 1), expected / (size or 1)) < 3e-6

    @on("emulated interpreted triton cuda")
    @pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, in the interpreter
    def test_deterministic_sums_show_what_is_not_finite(self, way):
        function, tensors = self.make(way)
        torch.use_deterministic_algorithms(True)
        output = function(*tensors)
        grad = torch.ones_like(output)
        grad[0, 0, 0, 0] = torch.inf
        assert torch.autograd.grad(output, tensors[:1], grad)[0].isnan().all()

    @on("cpu")
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.integers(1, 4),
        st.integers(1, 35),
        st.integers(1, 3),
        st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 2.75]),
    )
    def test_any_shape(self, way, size, groups, channels, batch, scale):
        options = {"size": size, "groups": groups, "group_channels": channels, "batch": batch}
        self.check(way, *self.make(way, **options, offset_scale=scale), bound=1e-5)

    @on("cuda triton")
    @pytest.mark.xdist_group("large")  # one at a time: they need most of the memory of a GPU
    def test_more_than_2_to_the_31_elements(self, way):
        if torch.cuda.mem_get_info()[0] < 50 << 30:
            pytest.skip("needs 50 GiB of free memory")
        size, groups = (2, 4096, 4100), 4
        inputs = [torch.randn(*size, n, device="cuda", dtype=BF16) for n in (64, groups * 27)]
        grad = torch.randn(*size, 64, device="cuda", dtype=BF16)
        options, module = (groups, 1, 1, 1, 1.0, False, True), way.module
        whole, part = module.dcnv3(*inputs, *options), module.dcnv3(*(t[1:] for t in inputs), *options)
        assert torch.equal(whole[1:], part)
        del whole, part
        whole = module.dcnv3_backward(grad, *inputs, *options)
        part = module.dcnv3_backward(grad[1:], *(t[1:] for t in inputs), *options)
        assert torch.equal(whole[1][1:], part[1])
        last = slice(-64, None)
        torch.testing.assert_close(whole[0][1, last].float(), part[0][0, last].float(), rtol=2**-7, atol=1e-3)
        assert whole[0][1, last].any(dim=-1).all()
