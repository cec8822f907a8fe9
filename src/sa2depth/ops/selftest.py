"""Compares every back end of every operator with the float64 torch path on small inputs; `sa2depth doctor` runs it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sa2depth.errors import ConfigError
from sa2depth.ops.choice import backend_of_this_thread
from sa2depth.ops.precision import float32_products
from sa2depth.ops.registry import OPERATORS, Backend, Operator

TOLERANCE = 1e-4
"""Largest error of outputs and gradients, as a share of the largest value: float32 with a margin."""


@dataclass(frozen=True)
class Check:
    """The result of testing one operator on one back end.

    Attributes:
        operator: the operator's name in `sa2depth.ops`.
        backend: the back end's name, such as ``torch`` or ``cpu``.
        error: largest error of the output and all gradients, as a share of the largest value of each; None if the
            back end cannot run.
        forward_ms: fastest of three forward calls after the first.
        reason: the reason why the back end cannot run; empty if it can.
    """

    operator: str
    backend: str
    error: float | None = None
    forward_ms: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """True if it ran and its error is within the tolerance."""
        return self.error is not None and self.error <= TOLERANCE


def offered(device: torch.device) -> list[tuple[str, str]]:
    """Pairs of operator and back end for a device: ``torch`` for all, ``cpu`` for a CPU, the others for GPUs."""
    return [
        (operator.name, backend.name)
        for operator in OPERATORS.values()
        for backend in (operator.backends[-1], *operator.backends[:-1])
        if _belongs(backend, device)
    ]


def check(operator: str, backend: str, device: torch.device) -> Check:
    """Test one back end of one operator in full float32, regardless of the float32_matmul_precision in force.

    Args:
        operator: the operator's name in `sa2depth.ops`.
        backend: a back end's name from :func:`offered`.
        device: the device to run on.

    Returns:
        The result, with a reason if the back end cannot take the inputs. Errors during its run are passed on.
    """
    tested = OPERATORS[operator]
    inference = tested.backend(backend).inference_only
    with float32_products("highest"):
        expected = _expected(tested)
        function, leaves = tested.example(device, torch.float32)
        with backend_of_this_thread(backend):
            try:
                found = [_output(function)] if inference else _results(function, leaves)
            except ConfigError as error:
                return Check(operator, backend, reason=str(error))
            error_share = max(_share(*pair) for pair in zip(found, expected, strict=not inference))
            return Check(operator, backend, error_share, _forward_ms(function, device))


def _belongs(backend: Backend, device: torch.device) -> bool:
    if backend.name == "triton":
        return device.type == "cuda"
    return backend.on_request or backend.name in ("torch", device.type)


def _expected(operator: Operator) -> list[Tensor]:
    with backend_of_this_thread("torch"):
        return _results(*operator.example(torch.device("cpu"), torch.float64))


def _results(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Output and gradients, float64 on the CPU."""
    output = function()
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output)
    gradients = torch.autograd.grad((output * weights).sum(), leaves)
    return [tensor.detach().double().cpu() for tensor in (output, *gradients)]


def _output(function: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return function().double().cpu()


def _share(found: Tensor, expected: Tensor) -> float:
    error = float((found - expected).abs().max() / expected.abs().max())
    return float("inf") if error != error else error


def _forward_ms(function: Callable[[], Tensor], device: torch.device) -> float:
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append((time.perf_counter() - start) * 1000)
    return min(times)
