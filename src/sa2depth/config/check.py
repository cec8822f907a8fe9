"""A misspelt key fails while composing, with the nearest names.

Hydra refuses unknown keys on the command line, but takes anything that an experiment file adds. Here every node that
names a ``_target_`` is held against that callable's signature, and the nodes that name none against the keys that
the programs read.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from sa2depth.errors import ConfigError, nearest

HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
FREE_NAMES = {"callbacks", "logger"}
"""Nodes whose keys are names that the user chooses."""


def _accepted(target: str, where: str) -> tuple[set[str], bool]:
    """Argument names of a target, and whether it takes any others."""
    try:
        callable_ = get_object(target)
    except Exception as error:
        raise ConfigError(f"{where}._target_ names '{target}', which cannot be imported: {error}") from error
    parameters = inspect.signature(callable_).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _check_node(node: Any, where: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, f"{where}[{index}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        names, any_other = _accepted(node["_target_"], where)
        for key in node:
            if key not in names and key not in HYDRA_KEYS and not any_other:
                raise ConfigError(
                    f"unknown option {where}.{key}: {node['_target_']} has none of that name; {nearest(key, names)}"
                )
    for key, value in node.items():
        _check_node(value, f"{where}.{key}")


def check_config(cfg: DictConfig, known: Mapping[str, Iterable[str] | None]) -> None:
    """Refuse unknown keys and unanswered choices.

    Args:
        cfg: the composed configuration; interpolations are allowed.
        known: top-level keys that the program reads, each with the keys allowed below it; ``None`` leaves them to
            ``_target_`` signatures.

    Raises:
        ConfigError: naming the key, where it stands and the nearest known names, or the keys that still are ``???``.
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
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    for key, node in tree.items():
        key = str(key)
        if key not in known:
            raise ConfigError(f"unknown option {key}; {nearest(key, known)}")
        allowed = known[key]
        if allowed is not None and isinstance(node, dict):
            for inner in node:
                if str(inner) not in set(allowed):
                    raise ConfigError(f"unknown option {key}.{inner}; {nearest(str(inner), allowed)}")
        if key in FREE_NAMES and isinstance(node, dict):
            for inner, value in node.items():
                if isinstance(value, dict) and "_target_" not in value:
                    raise ConfigError(
                        f"{key}.{inner} has no _target_: it names no class; {nearest(str(inner), node)}"
                    )
        _check_node(node, key)
