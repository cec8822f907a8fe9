"""One tester for all operators: each claim about a fast back end is written once and holds for every one of them.

A subclass (test_dcnv3.py ...) says how inputs are made, which cases each way to run it gets, how far its numbers may be
from the float64 torch path, and what is special about it. `ways.py` has the ways.
"""

import logging
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ops.claims import (
    BF16,
    EVERY,
    FP16,
    FP32,
    FP64,
    Function,
    among_nan,
    leaves,
    off_alignment,
    on,
    reference,
    run,
    share,
    words,
)
from ops.gpu_claims import GpuClaims
from ops.ways import GPU, Way, backend_of, noted_calls, replace_in_registry, ways
from sa2depth import ops
from sa2depth.errors import ConfigError
from sa2depth.ops import use_backend
from sa2depth.ops.runtime import nvrtc
from sa2depth.resources import csrc_dir


class OperatorTester(GpuClaims):
    """The claims. Tests take ``way``, inside whose context they run."""

    operator: str
    names: Sequence[str] = ()
    """Of the tensors, for messages."""
    defaults: dict[str, dict] = {}
    """Options of the inputs by kind of way."""
    bounds: dict[str, float] = {
        "cpu": 2e-6,
        "emulated": 3e-6,
        "interpreted": 2e-6,
        "cuda": 1e-5,
        "triton": 1e-5,
    }
    """Largest errors in float32, by kind."""
    half = {BF16: 3e-3, FP16: 4e-4}
    """Largest errors in half precision."""
    rounded_atol = 3e-5
    """What is allowed beside one rounding, for numbers near zero."""
    autocast = "nothing"
    """What autocast changes: ``nothing``, the ``input``'s type, or the ``output``'s."""
    any_order: Sequence[int] = ()
    """Results (0 is the output) that are summed in any order, unless PyTorch is told to be deterministic."""
    cases: Sequence[tuple] = ()
    """Rows of ways, options of the inputs, and perhaps a bound: see `check`."""
    edges: Sequence[tuple] = ((EVERY, {}),)
    """Rows of ways and options where kernels might read too far."""
    empty: Sequence[tuple] = ()
    """Rows of ways and options for which there is nothing to compute."""
    declines: Sequence[tuple] = ()
    """Rows of ways, options and what is said against them, which is nothing where they are taken."""

    # ---- inputs and results

    def inputs(self, draw: Function, **options: object) -> tuple[dict, list[Tensor | None]]:
        """Arguments by name, and the tensors before them, float64, from ``draw(*shape)``: normally distributed."""
        raise NotImplementedError

    def types(self, tensors: list[Tensor | None], dtype: torch.dtype, others: torch.dtype) -> list:
        """The tensors in these types: the first one is ``dtype``, as rounded as it makes it."""
        return [None if t is None else t.to(others if i else dtype) for i, t in enumerate(tensors)]

    def make(
        self,
        way: Way,
        dtype: torch.dtype = FP32,
        others: torch.dtype | None = None,
        device=None,
        seed=0,
        **options,
    ) -> tuple[Function, list[Tensor | None]]:
        """The operator as a function of its tensors, and these, leaves that ask for gradients."""
        random = torch.Generator().manual_seed(seed)
        options = {**self.defaults.get("all", {}), **self.defaults.get(way.kind, {}), **options}
        keywords, tensors = self.inputs(
            lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64), **options
        )
        tensors = self.types(tensors, dtype, others or (FP64 if dtype == FP64 else FP32))
        tensors = [None if t is None else t.to(device or way.device) for t in tensors]
        return self.function(**keywords), leaves(tensors)

    def function(self, **keywords: object) -> Function:
        """The public function with these arguments."""
        return lambda *tensors: getattr(ops, self.operator)(*tensors, **keywords)

    def parts(self, output: Tensor) -> list[Tensor]:
        """What of the output is compared on its own."""
        return [output]

    def check_layout(self, results: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """How results lie in memory."""

    def prepare(self, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
        """What an emulated machine is like."""

    # ---- comparisons

    def error(self, way: Way, actual: Tensor, expected: Tensor) -> float:
        """As a share: of the norm; on the CPU of the largest value, for the largest error."""
        if not expected.numel():
            return 0.0
        difference = actual.double() - expected.double()
        if way.kind == "cpu":  # a gradient that is zero but for rounding is measured against 1e-3
            return (difference.abs().max() / expected.abs().max().clamp(min=1e-3)).item()
        return (difference.norm() / expected.norm().clamp(min=1e-12)).item()

    def bound(self, way: Way, tensors: Sequence[Tensor]) -> float:
        narrow = [t.dtype for t in tensors if t is not None and t.dtype in self.half]
        cut = 2 if way.kind == "interpreted" and BF16 in narrow else 1
        return cut * max(self.half[dtype] for dtype in narrow) if narrow else self.bounds[way.kind]

    def check(
        self, way: Way, function: Function, tensors: Sequence[Tensor], bound=None
    ) -> tuple[Tensor, ...]:
        """Output and gradients are those of the float64 torch path; returns them.

        ``bound``: for all, or for the output and for gradients, or ``rounded``: sums are float32, and what half
        precision loses is one rounding, of each number of the output and of the first gradient (``rounded norm``: of
        their norms).
        """
        actual, expected = run(function, tensors), reference(function, tensors)
        leaves_of = [t for t in tensors if t is not None]
        assert [t.shape for t in actual] == [t.shape for t in expected]
        assert [t.dtype for t in actual] == [self.output_dtype(tensors), *(t.dtype for t in leaves_of)]
        self.check_layout(actual, tensors)
        self.compare(way, actual, expected, bound or self.bound(way, tensors))
        return actual

    def compare(self, way: Way, actual: Sequence[Tensor], expected: Sequence[Tensor], bound) -> None:
        if str(bound).startswith("rounded"):
            for a, e in zip(actual[:2], expected[:2], strict=True):
                rtol = 1.02 * way.rounding(a.dtype) or self.bounds[way.kind]
                if bound == "rounded":
                    torch.testing.assert_close(a.double(), e.double(), rtol=rtol, atol=self.rounded_atol)
                else:
                    assert share(a, e) < rtol
            actual, expected, bound = actual[2:], expected[2:], self.bounds[way.kind]
            errors = {
                n: self.error(way, a, e) for n, a, e in zip(self.names[1:], actual, expected, strict=False)
            }
        else:
            outputs = zip(self.parts(actual[0]), self.parts(expected[0]), strict=True)
            errors = {f"output {i}": self.error(way, *pair) for i, pair in enumerate(outputs)}
            gradients = zip(self.names, actual[1:], expected[1:], strict=False)
            first, rest = bound if isinstance(bound, tuple) else (bound, bound)
            assert max(errors.values()) < first, errors
            errors, bound = {n: self.error(way, a, e) for n, a, e in gradients}, rest
        print({name: f"{error:.1e}" for name, error in errors.items()})
        assert max(errors.values()) < bound, errors

    def output_dtype(self, tensors: Sequence[Tensor]) -> torch.dtype:
        return tensors[0].dtype

    def output_shape(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        return tensors[0].shape

    def equal(self, actual: Sequence[Tensor], expected: Sequence[Tensor], any_order: bool = True) -> None:
        """Results are the same bits, but for those that are summed in any order."""
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            if any_order and index in self.any_order:
                assert share(a, e) < (1e-6 if a.dtype == e.dtype == FP32 else 4e-3)
            else:
                torch.testing.assert_close(a.float(), e.float(), rtol=0, atol=0, equal_nan=True)

    # ---- claims

    @on(f"{EVERY} stand-in", "cases", every_path=True)
    def test_is_the_float64_torch_path(self, way, case):
        options, bound = (*case, None)[:2]
        self.check(way, *self.make(way, **options), bound=bound)

    def layouts(self, tensors: list[Tensor | None]) -> dict[str, list[Tensor | None]]:
        """The same numbers, elsewhere in memory."""

        def each(change: Function) -> list[Tensor | None]:
            return [None if t is None else change(t.detach()) for t in tensors]

        def turned(t: Tensor) -> Tensor:
            order = [0, *range(2, t.dim()), 1] if t.dim() > 2 else list(range(t.dim()))[::-1]
            return t.permute(order).contiguous().permute([order.index(i) for i in range(t.dim())])

        return {
            "every second number": each(lambda t: t.repeat_interleave(2, dim=-1)[..., ::2]),
            "off the alignment of 16 bytes": each(off_alignment),
            "contiguous": each(lambda t: t.contiguous()),
            "turned": each(turned),
        }

    @on(EVERY)
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=words)
    def test_layouts_of_inputs_change_nothing(self, way, dtype):
        function, tensors = self.make(way, dtype)
        expected = run(function, tensors)
        for name, other in self.layouts(tensors).items():
            for a, e in zip(other, tensors, strict=True):
                assert a is None or torch.equal(a, e), name
            self.equal(run(function, leaves(other)), expected)

    @on(EVERY)
    def test_layouts_of_gradients_change_nothing(self, way):
        function, tensors = self.make(way)
        output, gradients = function(*tensors), [t for t in tensors if t is not None]
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        for other in (
            grad.transpose(-1, -2).contiguous().transpose(-1, -2),
            grad.narrow(1, 0, 1).expand(output.shape),  # of a sum
            output.new_ones(()).expand(output.shape),
        ):
            expected = torch.autograd.grad(output, gradients, other.contiguous(), retain_graph=True)
            actual = torch.autograd.grad(output, gradients, other, retain_graph=True)
            self.equal((output, *actual), (output, *expected))

    @on(EVERY)
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=words)
    def test_every_run_gives_the_same_bits_and_writes_everything(self, way, dtype, monkeypatch):
        """Deterministic mode fills new memory with NaN on CUDA; elsewhere `ways.poison` does."""
        function, tensors = self.make(way, dtype)
        self.equal(run(function, tensors), run(function, tensors))
        torch.use_deterministic_algorithms(True)
        first = run(function, tensors)
        monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")  # threads in the other order
        self.equal(run(function, tensors), first, any_order=False)
        assert all(t.isfinite().all() for t in first)

    @on(EVERY, "edges")
    def test_reads_nothing_beside_its_tensors(self, way, case, monkeypatch):
        """Each operator and its backward pass get their arguments between NaN; so is what they ask memory for."""
        function, tensors = self.make(way, **case[0])
        expected = run(function, tensors)
        call, new_empty = torch.library.CustomOpDef.__call__, Tensor.new_empty

        def surrounded(operator, *arguments, **keywords):
            if not torch.is_grad_enabled():
                arguments = [among_nan(a) if isinstance(a, Tensor) and a.numel() else a for a in arguments]
            return call(operator, *arguments, **keywords)

        monkeypatch.setattr(torch.library.CustomOpDef, "__call__", surrounded)
        monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: among_nan(new_empty(*a, **k)))
        with torch.no_grad():
            output = function(*tensors)
        self.equal((output, *run(function, tensors)[1:]), expected)

    @on(EVERY)
    @pytest.mark.parametrize(
        ("dtype", "cast"), [(FP32, BF16), (FP32, FP16), (BF16, BF16), (FP16, BF16)], ids=words
    )
    def test_autocast(self, way, dtype, cast):
        function, tensors = self.make(way, dtype)
        with torch.autocast(way.device.type, cast):
            inside = run(function, tensors)
            with torch.no_grad():
                assert torch.equal(function(*tensors), inside[0])
            with torch.autocast(way.device.type, enabled=False):
                disabled = function(*tensors)
        assert [g.dtype for g in inside[1:]] == [t.dtype for t in tensors if t is not None]
        assert disabled.dtype == self.output_dtype(tensors)
        if self.autocast == "output":
            assert inside[0].dtype == cast
            self.compare(way, inside, reference(function, tensors), "rounded")
            return
        changed = leaves([tensors[0].to(cast), *tensors[1:]]) if self.autocast == "input" else tensors
        assert inside[0].dtype == self.output_dtype(changed)
        expected = run(function, changed)
        self.equal(inside, expected)

    @on(EVERY, "empty")
    def test_nothing_to_do(self, way, case):
        function, tensors = self.make(way, **case[0])
        way.launches.clear()
        output, *gradients = run(function, tensors)
        assert output.numel() == 0
        assert output.shape == self.output_shape(tensors)
        assert not way.launches
        assert [g.shape for g in gradients] == [t.shape for t in tensors if t is not None]
        assert not any(g.any() for g in gradients)

    @on(EVERY)
    def test_only_the_gradients_that_are_wanted(self, way):
        function, tensors = self.make(way)
        output, *expected = run(function, tensors)
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            some = [t if t is None else t.detach().requires_grad_(t is tensor) for t in tensors]
            result = run(function, some)
            assert result[0].requires_grad
            if index + 1 in self.any_order:
                assert share(result[1], expected[index]) < 1e-6
            else:
                torch.testing.assert_close(result[1], expected[index], rtol=1e-5, atol=1e-5)
        for without in ([t if t is None else t.detach() for t in tensors], tensors):
            with torch.set_grad_enabled(without is not tensors):
                result = function(*without)
            assert not result.requires_grad
            torch.testing.assert_close(result, output.detach(), rtol=0, atol=0)

    @on(EVERY)
    def test_nothing_is_kept_without_gradients(self, way):
        function, tensors = self.make(way)
        with noted_calls() as calls:
            function(*tensors)
        keeps = [call for call in calls if "bool keep" in call[0]._schema]
        assert all(arguments[-1] is True for _, arguments, _ in keeps)
        with noted_calls() as calls:
            with torch.no_grad():
                function(*tensors)
            function(*(t if t is None else t.detach() for t in tensors))
        for operator, arguments, result in calls:
            if "bool keep" in operator._schema:
                assert arguments[-1] is False
                assert not any(t.numel() for t in result[1:])
        for operator, arguments, _ in keeps:
            output, *kept = operator(*arguments[:-1], False)
            assert not any(t.numel() for t in kept)
            with pytest.raises(RuntimeError, match=r"keep|no backward pass"):
                output.sum().backward()

    @on(EVERY)
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=words)
    def test_rules_of_torch_library(self, way, dtype):
        """Whatever custom operator the public function calls: schema, fake results, autograd, compilation."""
        function, tensors = self.make(way, dtype, **self.defaults.get("opcheck", {}))
        tolerance = 1e-4 if dtype == FP32 else 1e-2
        with noted_calls() as calls:
            run(function, tensors)
            with torch.no_grad():
                function(*tensors)
        assert calls
        for operator, arguments, _ in calls:
            wants = any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
            keeps = not ("bool keep" in operator._schema and arguments[-1] is False)
            fresh = [
                a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments
            ]
            tests = ("test_schema", "test_faketensor")
            if wants and keeps:
                tests += ("test_autograd_registration", "test_aot_dispatch_dynamic")
            torch.library.opcheck(operator, tuple(fresh), test_utils=tests, atol=tolerance, rtol=tolerance)

    @on(EVERY)
    @pytest.mark.parametrize("autocast", [False, True])
    def test_compiles_without_a_graph_break(self, way, autocast):
        function, tensors = self.make(way)
        function = self.kernels(way, function)
        torch.compiler.reset()  # functions of other tests have the same code
        compiled = torch.compile(
            function, fullgraph=True, backend="inductor" if way.kind in GPU else "aot_eager"
        )
        with torch.autocast(way.device.type, BF16, enabled=autocast):
            expected, actual = run(function, tensors), run(compiled, tensors)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype
            assert share(a, e) < (1e-6 if a.dtype == FP32 else 4e-3)
        order = [
            [step for step, n in zip(t.stride(), t.shape, strict=True) if n > 1]
            for t in (actual[0], expected[0])
        ]
        assert order[0] == order[1]

    def kernels(self, way: Way, function: Function) -> Function:
        """The function, also where the public one leaves compiled code to the compiler."""
        return function

    @on(EVERY)
    def test_second_derivatives_are_refused(self, way):
        function, tensors = self.make(way)
        (gradient,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[:1], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()

    @on(f"{EVERY} stand-in", "declines")
    def test_takes_what_it_can_and_says_what_not(self, way, case, monkeypatch):
        """No memory is behind these tensors, so they may be of any size."""
        options, reason = case
        monkeypatch.undo()  # the true answers
        if way.kind == "emulated":
            monkeypatch.setattr(Tensor, "is_cuda", property(lambda t: t.device.type == "cpu"))
            for module, name in (
                (way.module, "_why_unavailable"),
                (way.module, "why_not_on"),
                (nvrtc, "why_not_on"),
            ):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, lambda *a: "")
        options = {**self.defaults.get("all", {}), **self.defaults.get(way.kind, {}), **options}
        dtype, device = options.pop("dtype", FP32), options.pop("device", way.device)
        others = options.pop("others", FP64 if dtype == FP64 else FP32)

        keywords, tensors = self.inputs(lambda *shape: torch.empty(shape, device="meta"), **options)
        dtypes = [dtype, *[others] * (len(tensors) - 1)]
        virtual = [
            t if t is None else torch.zeros((), dtype=d, device=device).expand(t.shape)
            for t, d in zip(tensors, dtypes, strict=True)
        ]
        taken = []
        replace_in_registry(monkeypatch, backend_of(way), run=lambda *a: taken.append(1) or virtual[0])
        with use_backend(way.backend):
            if reason:
                with pytest.raises(ConfigError, match=reason):
                    self.function(**keywords)(*virtual)
            else:
                self.function(**keywords)(*virtual)
        assert bool(taken) != bool(reason)

    @on("emulated")
    @pytest.mark.parametrize(
        ("architecture", "dtype"),
        [("sm_80", FP32), ("sm_80", FP16), ("sm_90", BF16)],  # each takes seconds
        ids=words,
    )
    def test_compiles_for_devices_with_all_numbers_in_registers(
        self, way, dtype, architecture, monkeypatch, tmp_path, caplog, needs_nvrtc
    ):
        sources = set()
        monkeypatch.setattr(way.module, "launch", lambda source, *_, **__: sources.add(source))
        for options in self.compiled_for:
            for autocast in (False, True) if self.autocast == "output" else (False,):
                with torch.autocast("cpu", BF16, enabled=autocast):
                    run(*self.make(way, dtype, **options))
        sources |= self.compiled_too(way, sources)
        monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
        caplog.set_level(logging.DEBUG, "sa2depth")
        for source in sources:
            nvrtc.compile_kernels(csrc_dir() / source.path, architecture, dict(source.macros))
        spilled = [int(number) for number in re.findall(r"(\d+) bytes spill stores", caplog.text)]
        assert len(spilled) >= len(sources) > 0
        assert max(spilled) <= self.spills(architecture, dtype), (
            "registers went to memory: look at the compiler's report"
        )

    compiled_for: Sequence[dict] = ({},)

    def compiled_too(self, way: Way, sources: set) -> set:
        """What other machines would compile."""
        return set()

    def spills(self, architecture: str, dtype: torch.dtype) -> int:
        """Bytes of registers of a thread that may go to memory."""
        return 0

    # ---- which ways and cases

    @classmethod
    def expand(cls, metafunc: pytest.Metafunc) -> None:
        """Parametrise a test method by its ways and cases."""
        if "way" not in metafunc.fixturenames:
            return
        kinds, table, every_path, inference = metafunc.function.tester
        found = [way for way in ways(cls.operator, every_path) if way.kind in kinds]
        found = [way for way in found if backend_of(way).inference_only == inference]
        rows = getattr(cls, table) if table else [("", None)]
        parameters = []
        for way in found:
            for row in rows:
                wanted = row[0].replace("gpu", "cuda triton").split()
                if not table or way.kind in wanted:
                    marks = [pytest.mark.gpu] if way.kind in GPU else [pytest.mark.slow] * (way.kind != "cpu")
                    name = f"{way}-{words(row[1])}" if table else str(way)
                    parameters.append(pytest.param(way, row[1:], id=name, marks=marks))
        if table:
            metafunc.parametrize(("way", "case"), parameters, indirect=["way"])
        else:
            ids = [pytest.param(p.values[0], id=p.id, marks=p.marks) for p in parameters]
            metafunc.parametrize("way", ids, indirect=True)
