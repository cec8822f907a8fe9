"""What is done around training and scoring: the network's form, buffers, pictures, and how far and how fast it goes."""

from sa2depth.lit.callbacks.buffers import SharedBuffers
from sa2depth.lit.callbacks.compiled import CompiledLayers
from sa2depth.lit.callbacks.continuing import Continuation
from sa2depth.lit.callbacks.epoch_log import EpochLog
from sa2depth.lit.callbacks.free_cores import FreeCores
from sa2depth.lit.callbacks.graphs import CudaGraphs
from sa2depth.lit.callbacks.pictures import Pictures
from sa2depth.lit.callbacks.throughput import Throughput
from sa2depth.lit.callbacks.time_left import TimeLeft
from sa2depth.lit.callbacks.truth import TruthSought

__all__ = [
    "CompiledLayers",
    "Continuation",
    "CudaGraphs",
    "EpochLog",
    "FreeCores",
    "Pictures",
    "SharedBuffers",
    "Throughput",
    "TimeLeft",
    "TruthSought",
]
