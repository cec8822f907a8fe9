"""Training and evaluation with Lightning: the module, its optimiser, schedules, callbacks and loggers."""

from sa2depth.lit.callbacks import (
    CompiledLayers,
    Continuation,
    CudaGraphs,
    EpochLog,
    FreeCores,
    Pictures,
    SharedBuffers,
    Throughput,
    TimeLeft,
    TruthSought,
)
from sa2depth.lit.checkpoint_files import WholeCheckpoints
from sa2depth.lit.csv_log import CsvLog
from sa2depth.lit.layer_sync import SyncBatchNorms
from sa2depth.lit.loggers import close_loggers, wandb_logger
from sa2depth.lit.module import DepthModule
from sa2depth.lit.optim import adamw
from sa2depth.lit.schedules import polynomial

__all__ = [
    "CompiledLayers",
    "Continuation",
    "CsvLog",
    "CudaGraphs",
    "DepthModule",
    "EpochLog",
    "FreeCores",
    "Pictures",
    "SharedBuffers",
    "SyncBatchNorms",
    "Throughput",
    "TimeLeft",
    "TruthSought",
    "WholeCheckpoints",
    "adamw",
    "close_loggers",
    "polynomial",
    "wandb_logger",
]
