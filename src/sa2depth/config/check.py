"""A misspelt key or a value of the wrong kind fails while composing, and the error names the nearest keys.

Hydra refuses unknown keys on the command line, but accepts any value and everything that an experiment file adds. Here
every node with a ``_target_`` is checked against that callable's signature, and every other node against the keys that
the programs read.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf

from sa2depth import targets
from sa2depth.config.options import TRAINER
from sa2depth.errors import ConfigError, as_typed, nearest
from sa2depth.quoting import override
from sa2depth.values import fits, words

HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
FREE_NAMES = {"callbacks", "logger"}
"""Nodes whose keys the user may choose freely."""

_ABSENT = object()
_REFERENCE = re.compile(r"\$\{(\.*)([\w.\[\]-]+)\}")


class _Composed(NamedTuple):
    """A configuration, and the same in plain containers with unresolved references."""

    cfg: DictConfig
    tree: dict[str, Any]


class _Signature(NamedTuple):
    names: set[str]
    """Arguments that may be given by name."""
    any_other: bool
    """Whether it takes others, too."""
    hints: dict[str, Any]
    """Annotations, as far as they can be read."""
    strict: bool
    """Whether it is ours, so that the annotations are complete."""


def _signature(target: str, where: str) -> _Signature:
    try:
        callable_ = targets.find(target)
    except ConfigError as error:
        raise ConfigError(f"{where}._target_ names {error}") from error
    try:
        parameters = inspect.signature(callable_).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return _Signature(set(), True, {}, False)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    ours = target.startswith("sa2depth.")
    made = callable_.__init__ if isinstance(callable_, type) else callable_  # type: ignore[misc]
    try:
        hints = get_type_hints(made, include_extras=ours)
    except Exception:  # an annotation uses names that only the type checker has
        written = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
        hints = {name: hint for name, hint in written.items() if not isinstance(hint, str)}
    hints = {name: hint for name, hint in hints.items() if name in names}
    hints |= {p.name: Optional[hints[p.name]] for p in parameters if p.name in hints and p.default is None}  # noqa: UP045
    any_other = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return _Signature(names, any_other, hints, ours)


def _check_node(node: Any, where: str, root: _Composed) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, f"{where}[{index}]", root)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        signature = _signature(node["_target_"], where)
        for key in node:
            if key in HYDRA_KEYS:
                continue
            if key not in signature.names and not signature.any_other:
                raise ConfigError(
                    f"unknown option {where}.{key}: {node['_target_']} has no argument of that name; "
                    f"{nearest(key, signature.names)}{_leftovers(node, where, signature)}"
                )
            if key in signature.hints:
                _check_value(f"{where}.{key}", signature.hints[key], root, signature.strict)
    for key, value in node.items():
        _check_node(value, f"{where}.{key}", root)


def _leftovers(node: Mapping[str, Any], where: str, signature: _Signature) -> str:
    """Say how to remove the options of the class that the user's own class replaces."""
    others = [str(key) for key in node if key not in HYDRA_KEYS and key not in signature.names]
    if signature.strict or "[" in where:
        return ""
    group = where.partition(".")[0]
    return (
        f". To remove options of the replaced class, add {' '.join(f'~{where}.{key}' for key in others)}, or, for "
        f"good, write DIR/{group}/NAME.yaml and choose it with --config-dir DIR {group}=NAME"
    )


def _check_value(option: str, wanted: Any, root: _Composed, strict: bool = True) -> None:
    """Refuse a value of the wrong kind; the error names the option that the value comes from."""
    found = _follow(option, root)
    if found is None:
        return
    name, value = found
    if not fits(value, wanted, strict=strict):
        text = ""
        if isinstance(value, bool | int | float) and fits("text", wanted, strict=strict):
            text = f"; to give it as text, type {override(name, as_typed(value))}"
        raise ConfigError(f"{name}={as_typed(value)}: expected {words(wanted)}{text}")


def _follow(option: str, root: _Composed) -> tuple[str, Any] | None:
    """The option at the end of a chain of references, and its value; None if there is no such option."""
    written = _written(option, root)
    if written is _ABSENT:
        return None
    value = OmegaConf.select(root.cfg, option)
    while isinstance(written, str) and (match := _REFERENCE.fullmatch(written)):
        dots, name = match.groups()
        above = option.split(".")[: -len(dots)] if dots else []
        option = ".".join([*above, name])
        written = _written(option, root)
    return option, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _written(option: str, root: _Composed) -> Any:
    """A value as written in the configuration, reference or not."""
    node: Any = root.tree
    for key in option.split("."):
        if not isinstance(node, dict) or key not in node:
            return _ABSENT
        node = node[key]
    return node


def check_config(cfg: DictConfig, known: Mapping[str, Any]) -> None:
    """Refuse unknown keys, missing options and values of the wrong kind.

    Args:
        cfg: the composed configuration; interpolations are allowed.
        known: top-level keys that the program reads, with their annotations or with the keys allowed below.

    Raises:
        ConfigError: a key is unknown (the nearest known ones are named), an option is still ``???``, or a value is not
            of the expected kind.
    """
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            "these options have no default and must be given: "
            + ", ".join(f"{key}=..." for key in missing)
            + (
                " (a file, timm:NAME or pip:PACKAGE; null trains from scratch)"
                if missing == ["pretrained_encoder"]
                else ""
            )
        )
    root = _Composed(cfg, cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False)))
    _check_level(root.tree, known, "", root)
    for option, wanted in TRAINER.items():
        _check_value(f"trainer.{option}", wanted, root, strict=False)


def _check_level(tree: Any, known: Mapping[str, Any], prefix: str, root: _Composed) -> None:
    """Check the keys of one level, and everything below them."""
    for key, node in tree.items():
        if key not in known:
            raise ConfigError(f"unknown option {prefix}{key}; {nearest(str(key), known)}")
        wanted = known[key]
        inner = isinstance(wanted, Mapping)
        _check_value(f"{prefix}{key}", dict if inner else wanted, root)
        if inner:
            _check_level(node, wanted, f"{prefix}{key}.", root)
        if key in FREE_NAMES and isinstance(node, dict):
            for name, value in node.items():
                if isinstance(value, dict) and "_target_" not in value:
                    raise ConfigError(
                        f"{key}.{name} has no _target_, which must name a class; {nearest(str(name), node)}"
                    )
        _check_node(node, key, root)
