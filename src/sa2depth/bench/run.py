"""A benchmark from its settings to rows: the torch path and the fast path, one after the other, in one run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sa2depth.bench.networks import MODELS, TRAINING_STEP, inference, network, parts, training
from sa2depth.bench.operators import operator_cases
from sa2depth.bench.timing import measure, replayed
from sa2depth.errors import ConfigError, nearest
from sa2depth.ops import use_backend

WHAT = ("operators", "parts", "inference", "training")
PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device: where.
        models: of ``nano``, ``t``, ``s``, ``l``.
        what: of ``operators`` (forward, and forward with backward), ``parts`` (encoder, decoder, heads), ``inference``,
            ``training``.
        size: height and width of the images, multiples of 32.
        batch: images.
        precisions: of ``fp32``, ``bf16``, ``fp16``.
        backends: names for `sa2depth.ops.use_backend`; the first one is what the others are compared with.
        budget_s: seconds for each measurement.
        graph: replay everything but training steps from CUDA graphs.

    Raises:
        ConfigError: a name that there is not, a size that is no multiple of 32, or graphs on a CPU.
    """

    device: torch.device
    models: Sequence[str] = ("t",)
    what: Sequence[str] = WHAT
    size: tuple[int, int] = (480, 640)
    batch: int = 1
    precisions: Sequence[str] = ("fp32",)
    backends: Sequence[str] = ("torch", "auto")
    budget_s: float = 1.0
    graph: bool = False

    def __post_init__(self) -> None:
        for names, known, option in (
            (self.models, tuple(MODELS), "--models"),
            (self.what, WHAT, "--what"),
            (self.precisions, PRECISIONS, "--precision"),
        ):
            for name in names:
                if name not in known:
                    raise ConfigError(f"{option} {name}: {nearest(name, known)}")
        if any(side % 32 or side < 32 for side in self.size):
            raise ConfigError(f"--size {self.size[0]}x{self.size[1]}: both sides must be multiples of 32")
        if self.graph and self.device.type != "cuda":
            raise ConfigError(f"--graph: CUDA graphs need a CUDA device, not {self.device}")
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: at least 1")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        model: ``t`` ...
        subject: operator and size, or the part of the network.
        precision: of the network.
        backend: what was asked of the operators.
        median_ms: of a call; None where it could not run.
        peak_mib: memory beyond what was there before, on CUDA.
        calls: timed calls.
        speedup: times as fast as the first back end, where both ran.
        note: why there is no figure.
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
        """For JSON."""
        return asdict(self)


def run(settings: Settings) -> Iterator[Row]:
    """Measure; rows come as they are done, those of one subject together."""
    for model in settings.models:
        for precision in settings.precisions:
            if "operators" in settings.what and model != "nano":
                yield from _operators(settings, model, precision)
            if set(settings.what) & {"parts", "inference", "training"}:
                yield from _network(settings, model, precision)


def _operators(settings: Settings, model: str, precision: str) -> Iterator[Row]:
    for case in operator_cases(model, settings.size, settings.batch):
        function, leaves = case.make(settings.device, _DTYPES[precision])

        def forward(function: Callable[[], torch.Tensor] = function) -> None:
            with torch.no_grad():
                function()

        def backward(
            function: Callable[[], torch.Tensor] = function, leaves: list[torch.Tensor] = leaves
        ) -> None:
            output = function()
            torch.autograd.grad(output, leaves, torch.ones_like(output))

        for name, call in (("forward", forward), ("forward+backward", backward)):
            yield from _compare(settings, model, f"{case.operator} {case.label}, {name}", precision, call)


def _network(settings: Settings, model: str, precision: str) -> Iterator[Row]:
    built = network(model, settings.device)
    image = torch.rand(settings.batch, 3, *settings.size, device=settings.device)
    steps = []
    if "parts" in settings.what:
        steps += parts(built, image, precision)
    if "inference" in settings.what:
        steps.append(inference(built, image, precision))
    for step in steps:
        yield from _compare(settings, model, step.name, precision, step.run)
    if "training" in settings.what:
        step = training(built, image, precision)
        yield from _compare(settings, model, step.name, precision, step.run)


def _compare(
    settings: Settings, model: str, subject: str, precision: str, call: Callable[[], object]
) -> Iterator[Row]:
    first: float | None = None
    for backend in settings.backends:
        with use_backend(backend):
            try:
                graph = settings.graph and subject != TRAINING_STEP
                timed = replayed(call, settings.device) if graph else call
                timing = measure(timed, settings.device, settings.budget_s)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                yield Row(model, subject, precision, backend, note="out of memory")
                continue
        if backend == settings.backends[0]:
            first = timing.median_ms
        speedup = None if first is None else first / timing.median_ms
        yield Row(
            model, subject, precision, backend, timing.median_ms, timing.peak_mib, timing.calls, speedup
        )
