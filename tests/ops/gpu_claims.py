"""The claims about operators that only a GPU can show: graphs, streams, devices, the compiler's code."""

from collections.abc import Sequence

import pytest
import torch

from ops.claims import on, reference, run, share
from sa2depth.ops import use_backend


class GpuClaims:
    """A part of `OperatorTester`."""

    capture: Sequence[tuple] = (("gpu", {}),)
    sizes_that_change: Sequence[dict] = ({},)

    @on("cuda triton", "declines")
    def test_what_the_kernels_do_not_take_runs_in_torch(self, way, case):
        options, reason = case
        if not reason or "device" in options or "shape" in reason:
            pytest.skip("an input for the question only")
        if "others" in options and "dtype" not in options:
            pytest.skip("PyTorch takes no such mixture of types either")
        function, tensors = self.make(way, **options)
        if not tensors[0].numel():
            pytest.skip("an input for the question only")
        with use_backend("auto"):
            actual = run(function, tensors)
        self.compare(way, actual, reference(function, tensors), 2e-3)  # cuDNN may take TF32

    @on("cuda triton", "capture")
    def test_captures_into_a_graph(self, way, case):
        function, tensors = self.make(way, **case[0])
        weight = torch.randn_like(function(*tensors))

        def step(gradients):
            if not gradients:
                with torch.no_grad():
                    return (function(*tensors),)
            output = function(*tensors)
            return output, *torch.autograd.grad(output, [t for t in tensors if t is not None], weight)

        for gradients in (False, True):
            step(gradients)  # compiles the kernels, which capturing does not allow
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step(gradients)
            for scale in (1.0, 0.5):
                with torch.no_grad():
                    tensors[0].mul_(scale)
                    for tensor in captured:
                        tensor.detach().zero_()
                expected = step(gradients)
                graph.replay()
                self.equal(captured, expected)

    @on("cuda triton")
    def test_runs_on_the_current_stream(self, way):
        function, tensors = self.make(way)
        tensors = [t if t is None else t.detach() for t in tensors]
        expected = function(*tensors)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for what follows
            tensors[0].mul_(2)
            tensors[0].mul_(0.5)
            actual = function(*tensors)
        stream.synchronize()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    @on("cuda triton")
    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    def test_the_second_device_while_the_first_is_current(self, way):
        function, tensors = self.make(way, device="cuda:1")
        assert torch.cuda.current_device() == 0
        self.check(way, function, tensors)
        assert torch.cuda.current_device() == 0

    @on("cuda triton")
    def test_compiles_with_inductor_for_sizes_that_change(self, way):
        (first, _), *_ = made = [self.make(way, **options) for options in self.sizes_that_change]
        torch.compiler.reset()
        compiled = torch.compile(self.kernels(way, first), fullgraph=True, dynamic=True)
        for function, tensors in made:
            for a, e in zip(run(compiled, tensors), run(function, tensors), strict=True):
                assert share(a, e) < 1e-6
