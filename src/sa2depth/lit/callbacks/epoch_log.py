"""A callback that logs one line per epoch."""

import logging

import lightning as L

_LOG = logging.getLogger(__name__)


class EpochLog(L.Callback):
    """Logs one line per epoch, for log files and for terminals that show no progress bar."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log loss, speed and the validation scores, if there are any."""
        if trainer.is_global_zero:
            shown = ("train/loss", "train/images_per_s", "val/abs_rel", "val/rmse", "val/d1")
            values = {
                name: trainer.callback_metrics[name] for name in shown if name in trainer.callback_metrics
            }
            line = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            _LOG.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, line)
