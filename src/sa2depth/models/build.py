"""Building a model from a specification."""

import inspect
import traceback
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from hydra.utils import instantiate

from sa2depth import targets
from sa2depth.errors import ConfigError, nearest
from sa2depth.models.presets import PRESETS
from sa2depth.models.sa2depth import SA2Depth

TRUSTED = ("sa2depth.",)


class UntrustedError(ConfigError):
    """A specification names classes that are not trusted.

    Attributes:
        names: The classes, as the specification writes them.
        homes: The full names under which they are really defined, in the same order.
    """

    def __init__(self, names: Sequence[str], homes: Sequence[str], trusted: Sequence[str]) -> None:
        self.names = list(names)
        self.homes = list(homes)
        really = [
            f"'{name}'" if name == home else f"'{name}', which really is '{home}'"
            for name, home in zip(names, homes, strict=True)
        ]
        super().__init__(
            f"the specification would call {' and '.join(really)}, which is not trusted; trusted are: "
            f"{', '.join(trusted)}"
        )


def build_model(spec: Mapping[str, Any], trusted: Sequence[str] | None = TRUSTED) -> SA2Depth:
    """Build the model that a specification describes.

    Args:
        spec: nested plain dictionaries with Hydra's ``_target_`` and ``_partial_``, ``min_depth`` and
            ``max_depth`` included, as in a configuration's ``model`` node and in a checkpoint.
        trusted: packages, modules and classes that a ``_target_`` may name. A specification may come with a
            stranger's checkpoint, so anything else is refused before it is imported. ``None`` allows everything, for
            a specification that you wrote yourself, as on the command line.

    Returns:
        The model, on the CPU with fresh weights, with a copy of the specification in ``model.spec``.

    Raises:
        UntrustedError: if a target is not trusted.
        ConfigError: if ``spec`` is not a dictionary, a target does not exist, a value is missing, or the result is
            not an `SA2Depth` model.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"build_model takes a spec (dictionary), not {spec!r:.80}; create_model takes a name: "
            'create_model("sa2depth_t", min_depth=0.1, max_depth=10)'
        )
    plain = _plain(spec)
    _check_targets(plain, trusted)
    for name in _required(plain):
        if plain.get(name) in (None, "???"):
            raise ConfigError(f"the model's specification lacks '{name}'")
    try:
        model = instantiate(deepcopy(plain), _convert_="all")
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from error
        raise ConfigError(f"the model's specification cannot be built: {error}{_place(cause)}") from error
    if not isinstance(model, SA2Depth):
        raise ConfigError(
            f"the specification builds a {type(model).__name__}, not an SA2Depth model: model._target_ must name "
            "sa2depth.models.SA2Depth or a subclass of it"
        )
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
    """A copy made of plain dictionaries and lists, whatever mapping types it came as."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if isinstance(node, str) and "${" in node:
        raise ConfigError(
            f"the model's specification holds the unresolved value '{node}': resolve it first, as "
            "OmegaConf.to_container(config, resolve=True) does"
        )
    return node


def _check_targets(plain: dict[str, Any], trusted: Sequence[str] | None) -> None:
    names = list(dict.fromkeys(targets.named(plain)))
    if trusted is not None:
        strange = [name for name in names if not targets.covered(name, trusted)]
        if strange:  # refused before any of them is imported
            raise UntrustedError(strange, strange, trusted)
    for name in names:
        try:
            found = targets.find(name)
        except ConfigError as error:
            raise ConfigError(f"the model's specification names {error}") from error
        # `sa2depth.some_module.os.system` also begins with a trusted name.
        home = targets.home(found)
        if trusted is not None and not targets.covered(home, trusted):
            raise UntrustedError([name], [home], trusted)


def _required(plain: dict[str, Any]) -> list[str]:
    """Keys that a specification must have: the arguments without default of the model's class."""
    model = targets.find(str(plain["_target_"])) if "_target_" in plain else SA2Depth
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is p.empty and p.kind in by_name]


def _place(error: BaseException | None) -> str:
    """The file and line outside of Hydra at which a class raised an error, or nothing."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    outside = [frame for frame in frames if "/hydra/" not in frame.filename.replace("\\", "/")]
    return f" (raised at {outside[-1].filename}:{outside[-1].lineno})" if outside else ""
