"""Models by name for users: the architecture from ``models``, the encoder's weights from ``weights``."""

from pathlib import Path

from sa2depth import models
from sa2depth.weights import load_encoder


def create_model(
    name: str, *, min_depth: float, max_depth: float, pretrained_encoder: str | Path | None = None
) -> models.SA2Depth:
    """Build a model by name.

    Args:
        name: ``sa2depth_t``, ``sa2depth_s``, ``sa2depth_l`` or ``sa2depth_nano``.
        min_depth: metres, left edge of the first bin.
        max_depth: metres, right edge of the last bin.
        pretrained_encoder: source for ``sa2depth.weights.load_encoder``; random weights if None.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ConfigError: there is no model of that name.
        CheckpointError: the encoder's weights do not fit.
    """
    model = models.create_model(name, min_depth=min_depth, max_depth=max_depth)
    if pretrained_encoder is not None:
        load_encoder(model, str(pretrained_encoder))
    return model
