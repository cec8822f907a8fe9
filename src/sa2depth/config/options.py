"""The options that the programs read themselves and no ``_target_`` takes, each with its annotation.

`Any` leaves the check to the code that uses the value, or to a ``_target_`` below it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

BOTH: dict[str, Any] = {
    **dict.fromkeys(("ops", "float32_matmul_precision", "augment", "data", "protocol", "trainer"), Any),
    "name": str,
    "seed": Annotated[int, Interval(ge=0, le=2**32 - 1)],
    "paths": {"data_dir": str, "runs_dir": str, "output_dir": Path},
    "cuda_graph": bool | Literal["auto"],
}
TRAIN = BOTH | {
    **dict.fromkeys(("encoder", "decoder", "bins", "head", "model", "gradient_checkpointing"), Any),
    **dict.fromkeys(("loss", "optim", "schedule", "callbacks", "logger"), Any),
    "min_depth": float,
    "max_depth": float,
    "pretrained_encoder": Path | None,
    "resume": Path | None,
    "compile": bool | Literal["auto"],
    "baseline": bool,
}
EVAL = BOTH | {
    **dict.fromkeys(("trusted", "prediction_scale", "prediction_resize"), Any),
    "checkpoint": Path | None,
    "predictions": Path | None,
    "released": {"min_depth": float | None, "max_depth": float | None},
}
TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": Annotated[int, Ge(1)],
    "check_val_every_n_epoch": Annotated[int, Ge(1)] | None,
    "gradient_clip_val": Annotated[float, Ge(0)] | None,
    "log_every_n_steps": Annotated[int, Ge(0)],
}
"""Options of Lightning's trainer whose wrong values it would not report clearly."""
