"""Gradient checkpointing of a network's parts (Chen et al., 2016); `sa2depth.nn.recompute` does it for one layer."""

from collections.abc import Collection, Mapping

from torch import nn

from sa2depth.errors import ConfigError, as_typed, nearest

PARTS = ("encoder", "decoder")


def checkpoint_layers(model: nn.Module, parts: str | Collection[str] | None) -> None:
    """Recompute the layers of some parts of a network in the backward pass: less memory, about a third more time.

    Args:
        model: a network with the attributes ``encoder`` and ``decoder``.
        parts: ``encoder``, ``decoder``, or a list of them; None or an empty list for none.

    Raises:
        ConfigError: if there is no part of this name, or the part does not offer it.
    """
    names = (parts,) if isinstance(parts, str) else parts or ()
    if isinstance(names, Mapping) or not isinstance(names, Collection):
        raise ConfigError(
            f"gradient_checkpointing={as_typed(parts)}: choose any of [{', '.join(PARTS)}], or [] for none"
        )
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"gradient_checkpointing={as_typed(name)}: {nearest(name, PARTS)}")
        part = getattr(model, name)
        if not hasattr(part, "gradient_checkpointing"):
            raise ConfigError(
                f"gradient_checkpointing={name}: a {type(part).__name__} does not offer it; leave {name} out"
            )
        part.gradient_checkpointing = True
