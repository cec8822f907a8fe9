"""Callbacks around training and scoring; this file lists those of every run.

For averaged weights and a checkpoint when a run fails, add Lightning's own ``EMAWeightAveraging`` and
``OnExceptionCheckpoint``, as in ``+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging``.
"""

import lightning as L

from sa2depth.lit.callbacks.buffers import SharedBuffers
from sa2depth.lit.callbacks.forms import CompiledLayers, CudaGraphs, Switch
from sa2depth.lit.callbacks.free_cores import FreeCores
from sa2depth.lit.callbacks.pictures import Pictures
from sa2depth.lit.callbacks.truth import TruthSought


def of_every_run(compile: Switch, cuda_graph: Switch) -> list[L.Callback]:
    """The callbacks of every run; they must come after all that change the network."""
    forms = CompiledLayers(compile), CudaGraphs(cuda_graph)
    return [FreeCores(), TruthSought(), *forms, SharedBuffers(), Pictures()]
