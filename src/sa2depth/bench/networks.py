"""Whole networks and their parts: inference, and one training step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sa2depth.losses import SILog
from sa2depth.models import PRESETS, SA2Depth, build_model
from sa2depth.runtime.compiled import compile_layers
from sa2depth.runtime.graphed import GraphedTraining
from sa2depth.runtime.inference import for_inference

MODELS = {"nano": "sa2depth_nano", "t": "sa2depth_t", "s": "sa2depth_s", "l": "sa2depth_l"}
PARTS = ("encoder", "decoder", "bin head", "depth head")
TRAINING_STEP = "training step"
_MAX_DEPTH = 10.0
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types for autocast, which needs a legal type even if it is off because the network stays in float32."""


@dataclass(frozen=True)
class Step:
    """A call to time.

    Attributes:
        name: name in tables, e.g. ``inference`` or ``decoder``.
        run: the call.
    """

    name: str
    run: Callable[[], object]


def network(model: str, device: torch.device) -> SA2Depth:
    """A network with random weights (seed 0), because its speed does not depend on them.

    Args:
        model: a key of ``MODELS``.
        device: device of the network.
    """
    torch.manual_seed(0)
    spec = {**PRESETS[MODELS[model]], "min_depth": 1e-3, "max_depth": _MAX_DEPTH}
    return build_model(spec).to(device)


def prepared(model: SA2Depth, precision: str, *, compile: bool) -> SA2Depth:
    """The copy that `sa2depth.infer` uses: merged and rounded weights, compiled if requested."""
    fast = for_inference(model, _DTYPES.get(precision))
    if compile:
        compile_layers(fast)
    return fast


def compiled(model: SA2Depth) -> SA2Depth:
    """A copy with compiled layers, for training."""
    fast = copy.deepcopy(model)
    compile_layers(fast)
    return fast


def inference(model: SA2Depth, image: Tensor, precision: str) -> Step:
    """One forward pass without gradients."""
    model.eval()

    def run() -> None:
        with torch.inference_mode(), autocast(image.device, precision):
            model(image)

    return Step("inference", run)


def training(model: SA2Depth, image: Tensor, precision: str, *, graph: bool = False) -> Step:
    """One step of forward, SILog, backward and AdamW; with ``graph`` the network's part is replayed."""
    model.train()
    call = GraphedTraining(model, required=True) if graph else model
    depth = torch.rand(len(image), 1, *image.shape[-2:], device=image.device) * (_MAX_DEPTH - 1) + 0.5
    optimizer, loss, valid = _optimizer(model, image.device), SILog(), depth > 0

    def run() -> None:
        with autocast(image.device, precision):
            value = loss(call(image).depth, depth, valid)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return Step(TRAINING_STEP, run)


def _optimizer(model: SA2Depth, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-5, fused=device.type == "cuda")


def part(name: str, model: SA2Depth, image: Tensor, precision: str) -> Step:
    """One of ``PARTS``, without gradients, on the output of the parts before it."""
    model.eval()
    with torch.inference_mode(), autocast(image.device, precision):
        value: Any = image
        module: nn.Module = model.encoder
        if name != "encoder":
            value, module = model.encoder(image), model.decoder
        if name not in ("encoder", "decoder"):
            value, module = model.decoder(value), model.bin_head if name == "bin head" else model.depth_head

    def run() -> None:
        with torch.inference_mode(), autocast(image.device, precision):
            module(value)

    return Step(name, run)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of ``fp32``, ``bf16`` or ``fp16``."""
    return torch.autocast(device.type, _DTYPES.get(precision, torch.bfloat16), enabled=precision in _DTYPES)
