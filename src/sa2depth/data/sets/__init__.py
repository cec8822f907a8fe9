"""The data sets, one module each: layout (a listing), factory (a source) and recipe (for preparing it).

Every module in this folder is found. ``__all__`` names its factories; ``RECIPES`` holds its recipes by the name of
the data set's file in ``conf/data``. So a new data set is one file here and one YAML there.
"""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sa2depth.data.prepare import Recipe
from sa2depth.data.source import FileSource
from sa2depth.errors import ConfigError, nearest

_OPTIONS = {"everything": "--all", "velodyne": "--velodyne", "depth": "--depth"}


def factories() -> dict[str, Callable[..., FileSource]]:
    """The functions that configurations refer to, by name; each returns a source."""
    return {name: getattr(module, name) for module in _modules() for name in module.__all__}


def recipes() -> dict[str, type[Recipe]]:
    """Recipes by the name of the data set's file in ``conf/data``."""
    return {name: kind for module in _modules() for name, kind in getattr(module, "RECIPES", {}).items()}


def make_recipe(name: str, root: Path, **options: Any) -> Recipe:
    """The recipe of a data set.

    Args:
        name: one of `recipes`.
        root: folder of the tree.
        options: the recipe's own fields; those that are None or False count as not given.

    Raises:
        ConfigError: the data set is unknown or lacks an option, or an option's value is unknown.
    """
    known = recipes()
    if name not in known:
        raise ConfigError(f"there is no recipe for a data set '{name}': {nearest(name, known)}")
    given = {key: value for key, value in options.items() if value}
    if unknown := sorted(given.keys() - {entry.name for entry in fields(known[name])}):
        raise ConfigError(f"{name} has no option {_OPTIONS.get(unknown[0], unknown[0])}: leave it out")
    return known[name](root.expanduser().absolute(), **given)


def _modules() -> Iterator[ModuleType]:
    return (import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
