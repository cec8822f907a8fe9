"""Whole networks and their parts: inference, and one training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sa2depth.losses import SILog
from sa2depth.models import PRESETS, SA2Depth, build_model

MODELS = {"nano": "sa2depth_nano", "t": "sa2depth_t", "s": "sa2depth_s", "l": "sa2depth_l"}
TRAINING_STEP = "training step"
_MAX_DEPTH = 10.0


@dataclass(frozen=True)
class Step:
    """Something to time.

    Attributes:
        name: for tables, e.g. ``inference`` or ``decoder``.
        run: one call.
    """

    name: str
    run: Callable[[], object]


def network(model: str, device: torch.device) -> SA2Depth:
    """A network with random weights (as built, seed 0): its speed does not depend on them.

    Args:
        model: a key of ``MODELS``.
        device: where to put it.
    """
    torch.manual_seed(0)
    spec = {**PRESETS[MODELS[model]], "min_depth": 1e-3, "max_depth": _MAX_DEPTH}
    return build_model(spec).to(device)


def inference(model: SA2Depth, image: Tensor, precision: str) -> Step:
    """One forward pass without gradients."""
    model.eval()

    def run() -> None:
        with torch.inference_mode(), autocast(image.device, precision):
            model(image)

    return Step("inference", run)


def training(model: SA2Depth, image: Tensor, precision: str) -> Step:
    """One step: forward, SILog, backward, AdamW."""
    model.train()
    depth = torch.rand(len(image), 1, *image.shape[-2:], device=image.device) * (_MAX_DEPTH - 1) + 0.5
    optimizer, loss, valid = torch.optim.AdamW(model.parameters(), 1e-5), SILog(), depth > 0

    def run() -> None:
        with autocast(image.device, precision):
            value = loss(model(image).depth, depth, valid)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return Step(TRAINING_STEP, run)


def parts(model: SA2Depth, image: Tensor, precision: str) -> list[Step]:
    """Encoder, decoder and heads, each on what the one before it made; without gradients."""
    model.eval()
    steps: list[Step] = []

    def add(name: str, module: nn.Module, value: Any) -> Any:
        def run() -> Any:
            with torch.inference_mode(), autocast(image.device, precision):
                return module(value)

        steps.append(Step(name, run))
        return run()

    features = add("encoder", model.encoder, image)
    levels = add("decoder", model.decoder, features)
    add("bin head", model.bin_head, levels)
    add("depth head", model.depth_head, levels)
    return steps


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of ``fp32``, ``bf16`` or ``fp16``."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(
        device.type, torch.bfloat16 if precision == "fp32" else dtype, enabled=precision != "fp32"
    )
