"""Every process evaluates the same network: the first process sends its batch-norm statistics to the others.

DistributedDataParallel would do so before every forward pass, which hangs if processes have unequal numbers of images.
"""

from typing import Any

import lightning as L
from torch.distributed import broadcast, is_available, is_initialized


class SharedBuffers(L.Callback):
    """Shares the network's buffers before each validation and test."""

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Send the buffers."""
        if is_available() and is_initialized():
            for buffer in pl_module.model.buffers():
                broadcast(buffer, src=0)

    on_test_epoch_start = on_validation_epoch_start
