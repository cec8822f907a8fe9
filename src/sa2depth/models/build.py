"""From a specification to a model."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from hydra.utils import get_object, instantiate

from sa2depth.errors import ConfigError, nearest
from sa2depth.models.presets import PRESETS
from sa2depth.models.sa2depth import SA2Depth

TRUSTED = ("sa2depth.",)


def build_model(spec: Mapping[str, Any], trusted: Sequence[str] = TRUSTED) -> SA2Depth:
    """Build the model that a specification describes.

    Args:
        spec: nested plain dictionaries with Hydra's ``_target_`` and ``_partial_``, ``min_depth`` and
            ``max_depth`` included; what is in a configuration's ``model`` node and in a checkpoint.
        trusted: prefixes of what a ``_target_`` may name. A specification may come with a stranger's
            checkpoint, so anything else is refused rather than called.

    Returns:
        The model, on the CPU with fresh weights, with a copy of the specification in ``model.spec``.

    Raises:
        ConfigError: if ``spec`` is no dictionary, a target is not trusted or does not exist, a value is missing, or
            the result is no model.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"build_model takes a spec (dictionary), not {spec!r:.80}; create_model takes a name: "
            'create_model("sa2depth_t", min_depth=0.1, max_depth=10)'
        )
    plain = _plain(spec)
    for target in _targets(plain):
        _check_target(target, tuple(trusted))
    for name in ("encoder", "decoder", "bin_head", "depth_head", "min_depth", "max_depth"):
        if plain.get(name) in (None, "???"):
            raise ConfigError(f"the model's specification lacks '{name}'")
    try:
        model = instantiate(deepcopy(plain), _convert_="all")
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from error
        raise ConfigError(f"the model's specification cannot be built: {error}") from error
    if not isinstance(model, SA2Depth):
        raise ConfigError(f"the specification builds a {type(model).__name__}, not a SA2Depth model")
    model.spec = plain
    return model


def create_model(name: str, *, min_depth: float, max_depth: float) -> SA2Depth:
    """Build a model by name, with random weights; ``sa2depth.create_model`` also loads encoder weights.

    Args:
        name: ``sa2depth_t``, ``sa2depth_s``, ``sa2depth_l`` or ``sa2depth_nano``.
        min_depth: metres, left edge of the first bin.
        max_depth: metres, right edge of the last bin.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ConfigError: if there is no model of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no model is named '{name}'; {nearest(name, PRESETS)}")
    return build_model({**PRESETS[name], "min_depth": min_depth, "max_depth": max_depth})


def _plain(node: Any) -> Any:
    """A copy of dictionaries and lists alone, whatever mapping they came as."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if isinstance(node, str) and "${" in node:
        raise ConfigError(f"the model's specification holds the unresolved value '{node}'")
    return node


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _check_target(target: str, trusted: tuple[str, ...]) -> None:
    if not target.startswith(trusted):
        raise ConfigError(
            f"the specification wants to call '{target}', which is not trusted; trusted: {', '.join(trusted)}"
        )
    try:
        found = get_object(target)
    except Exception as error:
        raise ConfigError(f"the specification names '{target}', which does not exist: {error}") from error
    # `sa2depth.some_module.os.system` begins with a trusted prefix, too.
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not home.startswith(trusted):
        raise ConfigError(f"'{target}' is really '{home}', which is not trusted")
