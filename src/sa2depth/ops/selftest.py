"""Every back end of every operator against the float64 torch path, on small inputs: `sa2depth doctor` runs it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sa2depth.errors import ConfigError
from sa2depth.ops.backends import NAMES, backend_of_this_thread
from sa2depth.ops.dcnv3 import dcnv3
from sa2depth.ops.depthwise_conv import depthwise_conv
from sa2depth.ops.gated_conv import gated_conv
from sa2depth.ops.layer_norm import layer_norm
from sa2depth.ops.precision import float32_products
from sa2depth.ops.rank_attention import rank_attention
from sa2depth.ops.selective_scan import selective_scan_2d

TOLERANCE = 1e-4
"""Largest error of outputs and gradients, as a share of the largest value: float32 with a margin."""


@dataclass(frozen=True)
class Check:
    """One operator on one back end.

    Attributes:
        operator: its name in `sa2depth.ops`.
        backend: ``torch``, ``cpu`` ...
        error: largest error of the output and all gradients, as a share of the largest value of each; None where the
            back end cannot run.
        forward_ms: fastest of three forward calls after the first.
        reason: why it cannot run.
    """

    operator: str
    backend: str
    error: float | None = None
    forward_ms: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and was right."""
        return self.error is not None and self.error <= TOLERANCE


def offered(device: torch.device) -> list[tuple[str, str]]:
    """Operators and back ends that belong to a device: ``torch`` to all, ``cpu`` to a CPU, the others to GPUs."""
    return [(operator, backend) for operator in _OPERATORS for backend in _offered(operator, device)]


def check(operator: str, backend: str, device: torch.device) -> Check:
    """Test one back end of one operator, in float32 whatever products of float32 are allowed to be.

    Args:
        operator: its name in `sa2depth.ops`.
        backend: of those of :func:`offered`.
        device: where to run.

    Returns:
        What was found; a back end that cannot run says why. One that fails in running raises what it raises.
    """
    make = _OPERATORS[operator]
    inference = (operator, backend) in _INFERENCE_ONLY
    with float32_products("highest"):
        expected = _expected(operator)
        function, leaves = make(device, torch.float32)
        with backend_of_this_thread(backend):
            try:
                found = [_output(function)] if inference else _results(function, leaves)
            except ConfigError as error:
                return Check(operator, backend, reason=str(error))
            error_share = max(_share(*pair) for pair in zip(found, expected, strict=not inference))
            return Check(operator, backend, error_share, _forward_ms(function, device))


def _offered(operator: str, device: torch.device) -> list[str]:
    here = ["torch", device.type]
    if device.type == "cuda":
        here.append("triton")
    if operator == "selective_scan_2d":
        here.append("mamba_ssm")
    return [name for name in here if name in NAMES and (operator, name) not in _TORCH_ONLY]


def _expected(operator: str) -> list[Tensor]:
    with backend_of_this_thread("torch"):
        return _results(*_OPERATORS[operator](torch.device("cpu"), torch.float64))


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


def _draw(seed: int, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # drawn in float32, so that both precisions start from the same numbers
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu").to(device, dtype)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _dcnv3(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    draw = _draw(1, device, dtype)
    mask = draw(2, 13, 17, 3, 9).softmax(-1).flatten(-2)
    leaves = _leaves([draw(2, 13, 17, 48), draw(2, 13, 17, 54), mask])
    return lambda: dcnv3(*leaves, groups=3), leaves


def _attention(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    draw = _draw(2, device, dtype)
    # Scores far enough from each other that no rank depends on rounding.
    query = (
        draw(2, 2, 1, 64).expand(-1, -1, 37, -1)
        * torch.linspace(0.5, 1.5, 37, device=device, dtype=dtype)[:, None]
    )
    steps = torch.linspace(-2, 2, 45, device=device, dtype=dtype)[:, None]
    direction = query[:, :, :1] / query[:, :, :1].square().sum(-1, keepdim=True)
    key = direction * steps * 8
    query, key, value = leaves = _leaves([query, key, draw(2, 2, 45, 64)])
    return lambda: rank_attention(query, key, value, 0.125), leaves


def _scan(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    draw = _draw(3, device, dtype)
    a_log = torch.arange(1.0, 17, device=device, dtype=dtype).log().repeat(4 * 40, 1)
    parameters = [draw(4, 36, 40) * 0.15, draw(4, 40, 4) * 0.5, draw(4, 40) - 3, a_log, draw(160)]
    leaves = _leaves([draw(2, 40, 9, 13), *parameters])
    return lambda: selective_scan_2d(*leaves), leaves


def _depthwise_conv(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    draw = _draw(4, device, dtype)
    leaves = _leaves([draw(2, 40, 13, 17), draw(40, 1, 11, 11) * 0.1, draw(40)])
    return lambda: depthwise_conv(*leaves), leaves


def _gated_conv(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    draw = _draw(5, device, dtype)
    leaves = _leaves([draw(2, 72, 13, 17), draw(72, 4, 3, 3) * 0.3, draw(72)])
    return lambda: gated_conv(*leaves), leaves


def _layer_norm(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    draw = _draw(6, device, dtype)
    leaves = _leaves([draw(2, 13, 17, 40), draw(40), draw(40)])
    return lambda: layer_norm(leaves[0], leaves[1], leaves[2], gelu=True), leaves


_INFERENCE_ONLY = {("gated_conv", "cpu")}
"""Without a backward pass of their own."""

_TORCH_ONLY = {("depthwise_conv", "cpu"), ("layer_norm", "cpu")}
"""Where a name would run the torch path."""

_OPERATORS = {
    "dcnv3": _dcnv3,
    "depthwise_conv": _depthwise_conv,
    "gated_conv": _gated_conv,
    "layer_norm": _layer_norm,
    "rank_attention": _attention,
    "selective_scan_2d": _scan,
}
