"""The options that no ``_target_`` takes: what training and evaluation read at the top of their configurations.

`Any` leaves the check to whoever takes the value.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]


@dataclass
class Paths:
    """``paths``."""

    data_dir: str
    runs_dir: str
    output_dir: Path


@dataclass
class Released:
    """``released``: what released checkpoints do not say."""

    min_depth: float | None
    max_depth: float | None


@dataclass
class Options:
    """The keys that both programs read."""

    name: str
    seed: Seed
    ops: Any
    float32_matmul_precision: Any
    augment: Any
    data: Any
    protocol: Any
    trainer: Any
    paths: Paths
    cuda_graph: bool | Literal["auto"]


@dataclass
class TrainOptions(Options):
    """``conf/train.yaml``."""

    min_depth: float
    max_depth: float
    pretrained_encoder: Path | None
    resume: Path | None
    compile: bool | Literal["auto"]
    gradient_checkpointing: Any
    baseline: bool
    model: Any
    encoder: Any
    decoder: Any
    bins: Any
    head: Any
    loss: Any
    optim: Any
    schedule: Any
    callbacks: Any
    logger: Any


@dataclass
class EvalOptions(Options):
    """``conf/eval.yaml``."""

    checkpoint: Path | None
    trusted: Any
    predictions: Path | None
    prediction_scale: Any
    prediction_resize: Any
    released: Released


TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": Annotated[int, Ge(1)],
    "check_val_every_n_epoch": Annotated[int, Ge(1)] | None,
    "gradient_clip_val": Annotated[float, Ge(0)] | None,
    "log_every_n_steps": Annotated[int, Ge(0)],
}
"""What Lightning's trainer takes, where it would not say so."""
