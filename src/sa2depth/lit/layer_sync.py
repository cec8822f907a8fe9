"""Lightning's switch for synchronised batch norms, ``sync_batchnorm``, made to work for every network."""

from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch.nn import Module

from sa2depth.nn.sync_batch_norm import restore_batch_norms, synchronize_batch_norms


class SyncBatchNorms(TorchSyncBatchNorm):
    """Replaces the batch norms for the time of a training, see `sa2depth.nn.sync_batch_norm`."""

    def apply(self, model: Module) -> Module:
        """Synchronise, in place.

        Raises:
            ConfigError: if the network has a norm that this cannot be done with.
        """
        synchronize_batch_norms(model)
        return model

    def revert(self, model: Module) -> Module:
        """Undo it, in place."""
        restore_batch_norms(model)
        return model
