"""A benchmark from its settings to rows; the torch path and the fast path are measured one after the other."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sa2depth.bench.evaluation import evaluation_times
from sa2depth.bench.networks import (
    MODELS,
    PARTS,
    TRAINING_STEP,
    compiled,
    inference,
    network,
    part,
    prepared,
    training,
)
from sa2depth.bench.operators import OperatorCase, operator_cases
from sa2depth.bench.timing import allocated, measure, replayed
from sa2depth.errors import ConfigError, nearest
from sa2depth.models import SA2Depth
from sa2depth.ops import use_backend
from sa2depth.ops.choice import NAMES
from sa2depth.ops.precision import float32_products
from sa2depth.runtime.compiled import why_not_compiled

NETWORK = ("operators", "parts", "inference", "training")
WHAT = (*NETWORK, "evaluation")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUT_OF_MEMORY = "out of memory"
_MODIFIERS = ("prepared", "compile", "graph")


@dataclass(frozen=True)
class Way:
    """A way to make a call: `BACKEND[+prepared][+compile][+graph]`.

    Attributes:
        backend: argument of `sa2depth.ops.use_backend`.
        prepared: inference with `sa2depth.runtime.inference.for_inference`; ``compile`` and ``graph`` include it.
        compile: ``torch.compile`` fuses layers.
        graph: a CUDA graph is replayed, which takes the kernels' time without Python and launches; a training step
            replays the network's forward and backward pass.
    """

    backend: str
    prepared: bool = False
    compile: bool = False
    graph: bool = False

    @classmethod
    def parse(cls, text: str, device: torch.device) -> "Way":
        """Read a way from its notation.

        Raises:
            ConfigError: there is no such back end or modifier, or the device cannot run it.
        """
        backend, *modifiers = text.split("+")
        if backend not in NAMES:
            raise ConfigError(f"--backends {text}: {nearest(backend, NAMES)}")
        for modifier in modifiers:
            if modifier not in _MODIFIERS:
                raise ConfigError(f"--backends {text}: {nearest(modifier, _MODIFIERS)}")
        if "graph" in modifiers and device.type != "cuda":
            raise ConfigError(f"--backends {text}: CUDA graphs need a CUDA device, not {device}")
        if "compile" in modifiers and (reason := why_not_compiled(device)):
            raise ConfigError(f"--backends {text}: {reason}")
        return cls(backend, bool(modifiers), "compile" in modifiers, "graph" in modifiers)


@dataclass(frozen=True)
class Settings:
    """The things to measure.

    Attributes:
        device: device of the measurement.
        models: any of ``nano``, ``t``, ``s``, ``l``.
        what: any of ``operators`` (forward, and forward with backward), ``parts`` (encoder, decoder, heads),
            ``inference``, ``training``, and ``evaluation`` (the CPU's part of an evaluation).
        size: height and width of the images, multiples of 32.
        batch: images.
        precisions: any of ``fp32`` (matrix products in float32; convolutions as PyTorch has them), ``tf32``, ``bf16``,
            ``fp16``.
        backends: ways in the notation of `Way`; the others are compared with the first.
        budget_s: seconds for each measurement.

    Raises:
        ConfigError: a name is unknown, nothing is to be measured, a side is not a multiple of 32, or the device cannot
            run a way.
    """

    device: torch.device
    models: Sequence[str] = ("t",)
    what: Sequence[str] = NETWORK
    size: tuple[int, int] = (480, 640)
    batch: int = 1
    precisions: Sequence[str] = ("fp32",)
    backends: Sequence[str] = ("torch", "auto")
    budget_s: float = 1.0

    def __post_init__(self) -> None:
        named = [
            (self.models, tuple(MODELS), "--models"),
            (self.what, WHAT, "--what"),
            (self.precisions, PRECISIONS, "--precision"),
        ]
        for names, known, option in [*named, (self.backends, NAMES, "--backends")]:
            if not names:
                raise ConfigError(f"{option} is empty: choose any of {', '.join(known)}")
        for names, known, option in named:
            for name in names:
                if name not in known:
                    raise ConfigError(f"{option} {name}: {nearest(name, known)}")
        if set(self.models) == {"nano"} and set(self.what) == {"operators"}:
            raise ConfigError("operators are not measured at the sizes of nano: choose t, s or l")
        if any(side % 32 or side < 32 for side in self.size):
            raise ConfigError(f"--size {self.size[0]}x{self.size[1]}: both sides must be multiples of 32")
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: it must be at least 1")
        self.ways()

    def ways(self) -> list[Way]:
        """The ways that ``backends`` names."""
        return [Way.parse(text, self.device) for text in self.backends]


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        model: ``t`` ...
        subject: operator and size, or the part of the network.
        precision: precision of the network.
        backend: the way, in the notation of `Way`.
        median_ms: median time of a call; None if it could not run.
        peak_mib: peak memory on CUDA, weights included.
        calls: number of timed calls.
        speedup: speed relative to the first back end, if both ran.
        note: the reason if there is no figure.
    """

    model: str
    subject: str
    precision: str
    backend: str
    median_ms: float | None = None
    peak_mib: float | None = None
    calls: int = 0
    speedup: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dict for JSON."""
        return asdict(self)


Call = Callable[[], object]


def run(settings: Settings) -> Iterator[Row]:
    """Measure; each row is yielded as soon as it is done, and rows of one subject follow each other."""
    if "evaluation" in settings.what:
        yield from _evaluation(settings)
    for model in settings.models:
        for precision in settings.precisions:
            if "operators" in settings.what and model != "nano":
                yield from _operators(settings, model, precision)
            if "parts" in settings.what:
                yield from _parts(settings, model, precision)
            if "inference" in settings.what:
                yield from _compare(settings, model, "inference", precision, _inference)
            if "training" in settings.what:
                yield from _compare(settings, model, TRAINING_STEP, precision, _training)


def _evaluation(settings: Settings) -> Iterator[Row]:
    first: dict[str, float] = {}
    for timed in evaluation_times(settings.size):
        speedup = first.setdefault(timed.subject, timed.seconds) / timed.seconds
        yield Row("-", timed.subject, "fp64", timed.way, 1000 * timed.seconds, calls=1, speedup=speedup)


def _operators(settings: Settings, model: str, precision: str) -> Iterator[Row]:
    for case in operator_cases(model, settings.size, settings.batch):

        def forward(*_: Any, case: OperatorCase = case) -> Call:
            made = case.make(settings.device, _DTYPES[precision])

            def call() -> None:
                with torch.no_grad():
                    made[0]()

            return call

        def backward(*_: Any, case: OperatorCase = case) -> Call:
            function, leaves = case.make(settings.device, _DTYPES[precision])

            def call() -> None:
                output = function()
                torch.autograd.grad(output, leaves, torch.ones_like(output))

            return call

        for name, make in (("forward", forward), ("forward+backward", backward)):
            yield from _compare(settings, model, f"{case.operator} {case.label}, {name}", precision, make)


def _parts(settings: Settings, model: str, precision: str) -> Iterator[Row]:
    for name in PARTS:

        def make(settings: Settings, model: str, precision: str, way: Way, name: str = name) -> Call:
            return part(name, _network(settings, model, precision, way), _image(settings), precision).run

        yield from _compare(settings, model, name, precision, make)


def _network(settings: Settings, model: str, precision: str, way: Way) -> SA2Depth:
    built = network(model, settings.device)
    return prepared(built, precision, compile=way.compile) if way.prepared else built


def _inference(settings: Settings, model: str, precision: str, way: Way) -> Call:
    return inference(_network(settings, model, precision, way), _image(settings), precision).run


def _training(settings: Settings, model: str, precision: str, way: Way) -> Call:
    built = network(model, settings.device)
    built = compiled(built) if way.compile else built
    return training(built, _image(settings), precision, graph=way.graph).run


def _image(settings: Settings) -> torch.Tensor:
    return torch.rand(settings.batch, 3, *settings.size, device=settings.device)


def _compare(
    settings: Settings,
    model: str,
    subject: str,
    precision: str,
    make: Callable[[Settings, str, str, Way], Call],
) -> Iterator[Row]:
    first: float | None = None
    for text, way in zip(settings.backends, settings.ways(), strict=True):
        gc.collect()
        before = allocated(settings.device)
        if settings.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(settings.device)
        with use_backend(way.backend), float32_products("high" if precision == "tf32" else "highest"):
            try:
                call = make(settings, model, precision, way)
                if way.graph and subject != TRAINING_STEP:
                    call = replayed(call, settings.device)
                timing = measure(call, settings.device, settings.budget_s, before, captured=way.graph)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                yield Row(model, subject, precision, text, note=OUT_OF_MEMORY)
                continue
            except (ConfigError, RuntimeError) as error:  # the other ways are still measured
                yield Row(model, subject, precision, text, note=str(error).partition("\n")[0])
                continue
            finally:
                call = None  # type: ignore[assignment]  # frees its network and graph before the next is built
        if text == settings.backends[0]:
            first = timing.median_ms
        speedup = None if first is None else first / timing.median_ms
        yield Row(model, subject, precision, text, timing.median_ms, timing.peak_mib, timing.calls, speedup)
