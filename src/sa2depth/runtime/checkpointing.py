"""Gradient checkpointing of a network's parts (Chen et al., 2016); `sa2depth.nn.recompute` runs their layers again."""

from collections.abc import Collection, Mapping

from torch import nn

from sa2depth.errors import ConfigError, as_typed, nearest

PARTS = ("encoder", "decoder")


def checkpoint_layers(model: nn.Module, parts: str | Collection[str] | None) -> None:
    """Recompute the layers of some parts of a network in the backward pass: less memory, about a third more time.

    Args:
        model: with the attributes ``encoder`` and ``decoder``.
        parts: of ``encoder``, ``decoder``; one of them may stand alone.

    Raises:
        ConfigError: no part has this name, or the part cannot do it.
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
