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
"""Of autocast; it is off where the network stays in float32, and wants a legal one all the same."""


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


def prepared(model: SA2Depth, precision: str, *, compile: bool) -> SA2Depth:
    """The copy that `sa2depth.infer` uses: merged and rounded weights, compiled if asked for."""
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
    """One step: forward, SILog, backward, AdamW; with ``graph`` the network's share is replayed."""
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
    """One of ``PARTS`` on what the parts before it made; without gradients."""
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
