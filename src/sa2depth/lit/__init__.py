"""Training and evaluation with Lightning: the module, its optimiser, schedules, callbacks and loggers."""

from sa2depth.lit.callbacks.continuing import Continuation
from sa2depth.lit.callbacks.epoch_log import EpochLog
from sa2depth.lit.callbacks.free_cores import FreeCores
from sa2depth.lit.callbacks.throughput import Throughput
from sa2depth.lit.callbacks.time_left import TimeLeft
from sa2depth.lit.checkpoint_files import WholeCheckpoints
from sa2depth.lit.csv_log import CsvLog
from sa2depth.lit.layer_sync import SyncBatchNorms
from sa2depth.lit.loggers import close_loggers, wandb_logger
from sa2depth.lit.module import DepthModule
from sa2depth.lit.optim import adamw
from sa2depth.lit.schedules import polynomial

__all__ = [
    "Continuation",
    "CsvLog",
    "DepthModule",
    "EpochLog",
    "FreeCores",
    "SyncBatchNorms",
    "Throughput",
    "TimeLeft",
    "WholeCheckpoints",
    "adamw",
    "close_loggers",
    "polynomial",
    "wandb_logger",
]
