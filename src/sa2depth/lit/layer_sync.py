"""Lightning's switch for synchronised batch norms, ``sync_batchnorm``, made to work for every network."""

from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch.nn import Module

from sa2depth.nn.sync_batch_norm import restore_batch_norms, synchronize_batch_norms


class SyncBatchNorms(TorchSyncBatchNorm):
    """Replaces the batch norms during a training; see `sa2depth.nn.sync_batch_norm`."""

    def apply(self, model: Module) -> Module:
        """Synchronise the batch norms, in place.

        Raises:
            ConfigError: the network has a norm that cannot be synchronised.
        """
        synchronize_batch_norms(model)
        return model

    def revert(self, model: Module) -> Module:
        """Restore the original batch norms, in place."""
        restore_batch_norms(model)
        return model
