"""A misspelt key or a value of the wrong kind fails while composing, with the nearest names.

Hydra refuses unknown keys on the command line, but takes anything that an experiment file adds, and any value. Here
every node that names a ``_target_`` is held against that callable's signature, and the nodes that name none against
the keys that the programs read.
"""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, get_type_hints

from omegaconf import DictConfig, OmegaConf

from sa2depth import targets
from sa2depth.config.values import fits, words
from sa2depth.errors import ConfigError, as_typed, nearest
from sa2depth.quoting import override

HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
FREE_NAMES = {"callbacks", "logger"}
"""Nodes whose keys are names that the user chooses."""

OPTIONS: dict[str, Any] = {
    "name": str,
    "seed": int,
    "min_depth": float,
    "max_depth": float,
    "pretrained_encoder": Path | None,
    "resume": Path | None,
    "compile": bool | Literal["auto"],
    "cuda_graph": bool | Literal["auto"],
    "baseline": bool,
    "checkpoint": Path | None,
    "predictions": Path | None,
    "released.min_depth": float | None,
    "released.max_depth": float | None,
    "paths.data_dir": str,
    "paths.runs_dir": str,
    "paths.output_dir": Path,
}
"""What the options outside of all targets hold. Others check their values themselves, and name the choices."""

RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
}
"""Smallest and largest value where whoever takes the option would not say so."""

_ABSENT = object()
_REFERENCE = re.compile(r"\$\{(\.*)([\w.\[\]-]+)\}")


class _Signature(NamedTuple):
    names: set[str]
    """Arguments that may be given by name."""
    any_other: bool
    """Takes others, too."""
    hints: dict[str, Any]
    """Annotations, as far as they can be read."""
    strict: bool
    """Ours: the annotations say all that may be given."""


def _signature(target: str, where: str) -> _Signature:
    try:
        callable_ = targets.find(target)
    except ConfigError as error:
        raise ConfigError(f"{where}._target_ names {error}") from error
    try:
        parameters = inspect.signature(callable_).parameters.values()
    except (TypeError, ValueError):  # some written in C have none
        return _Signature(set(), True, {}, False)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    try:
        hints = get_type_hints(callable_.__init__ if isinstance(callable_, type) else callable_)  # type: ignore[misc]
    except Exception:  # names that exist for the type checker only
        written = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
        hints = {name: hint for name, hint in written.items() if not isinstance(hint, str)}
    hints = {name: hint for name, hint in hints.items() if name in names}
    hints |= {p.name: Optional[hints[p.name]] for p in parameters if p.name in hints and p.default is None}  # noqa: UP045
    any_other = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return _Signature(names, any_other, hints, target.startswith("sa2depth."))


def _check_node(node: Any, where: str, root: DictConfig) -> None:
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
                    f"unknown option {where}.{key}: {node['_target_']} has none of that name; "
                    f"{nearest(key, signature.names)}{_leftovers(node, where, signature)}"
                )
            if key in signature.hints:
                _check_value(f"{where}.{key}", signature.hints[key], root, signature.strict)
    for key, value in node.items():
        _check_node(value, f"{where}.{key}", root)


def _leftovers(node: Mapping[str, Any], where: str, signature: _Signature) -> str:
    """How to be rid of the options of the class that stood there before one of the user's own."""
    others = [str(key) for key in node if key not in HYDRA_KEYS and key not in signature.names]
    if signature.strict or "[" in where:
        return ""
    group = where.partition(".")[0]
    return (
        f". If they belong to the class that stood there before: {' '.join(f'~{where}.{key}' for key in others)}, or, "
        f"for good, write DIR/{group}/NAME.yaml and choose it with --config-dir DIR {group}=NAME"
    )


def _check_value(option: str, wanted: Any, root: DictConfig, strict: bool = True) -> None:
    """Refuse a value that is not what it should be, by the name of the option that it comes from."""
    found = _follow(option, root)
    if found is None:
        return
    name, value = found
    if not fits(value, wanted, strict=strict):
        text = ""
        if isinstance(value, bool | int | float) and fits("text", wanted, strict=strict):
            text = f"; as text it is typed {override(name, as_typed(value))}"
        raise ConfigError(f"{name}={as_typed(value)}: expected {words(wanted)}{text}")


def _follow(option: str, root: DictConfig) -> tuple[str, Any] | None:
    """The option that a chain of references ends at, and its value; None where there is no such option."""
    written = _written(option, root)
    if written is _ABSENT:
        return None
    value = OmegaConf.select(root, option)
    while isinstance(written, str) and (match := _REFERENCE.fullmatch(written)):
        dots, name = match.groups()
        above = option.split(".")[: -len(dots)] if dots else []
        option = ".".join([*above, name])
        written = _written(option, root)
    return option, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _written(option: str, root: DictConfig) -> Any:
    """A value as it stands in the configuration, reference or not."""
    above, _, key = option.rpartition(".")
    node = OmegaConf.select(root, above) if above else root
    if not isinstance(node, DictConfig) or key not in node:
        return _ABSENT
    return OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[call-overload,index]


def _check_ranges(root: DictConfig) -> None:
    for option, (least, most) in RANGES.items():
        name, value = _follow(option, root) or (option, None)
        if isinstance(value, int | float) and not least <= value <= most:
            limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name}={as_typed(value)}: {limits}")


def check_config(cfg: DictConfig, known: Mapping[str, Iterable[str] | None]) -> None:
    """Refuse unknown keys, unanswered choices and values of the wrong kind.

    Args:
        cfg: the composed configuration; interpolations are allowed.
        known: top-level keys that the program reads, each with the keys allowed below it; ``None`` leaves them to
            ``_target_`` signatures.

    Raises:
        ConfigError: naming the key, where it stands and the nearest known names, the keys that still are ``???``, or
            the option, its value and what was expected.
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
        _check_node(node, key, cfg)
    for option, wanted in OPTIONS.items():
        _check_value(option, wanted, cfg)
    _check_ranges(cfg)
