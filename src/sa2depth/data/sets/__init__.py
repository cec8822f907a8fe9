"""The data sets that can be prepared, by name."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from sa2depth.data.prepare.recipe import Recipe
from sa2depth.data.sets.diml_recipe import DimlOutdoor
from sa2depth.data.sets.kitti.official_recipe import KittiOfficial
from sa2depth.data.sets.kitti.recipe import KittiEigen
from sa2depth.data.sets.nyu.recipe import NyuLabelled, NyuSync
from sa2depth.data.sets.sunrgbd_recipe import SunRgbd
from sa2depth.errors import ConfigError, nearest

RECIPES: dict[str, type[Recipe]] = {
    "nyu_sync": NyuSync,
    "nyu_labelled": NyuLabelled,
    "kitti_eigen": KittiEigen,
    "kitti_official": KittiOfficial,
    "sunrgbd": SunRgbd,
    "diml_outdoor": DimlOutdoor,
}
"""Recipes by the name of the data set's file in ``conf/data``."""

_OPTIONS = {"everything": "--all", "velodyne": "--velodyne", "depth": "--depth"}


def make_recipe(name: str, root: Path, **options: Any) -> Recipe:
    """The recipe of a data set.

    Args:
        name: one of `RECIPES`.
        root: folder of the tree.
        options: ``everything``, ``velodyne``, ``depth``; those that are None or False are not given.

    Raises:
        ConfigError: no such data set, one that knows nothing of an option, or an option's value is unknown.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe for a data set '{name}': {nearest(name, RECIPES)}")
    given = {key: value for key, value in options.items() if value}
    known = {entry.name for entry in fields(RECIPES[name])} - {"root"}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{name} has no choice of {_OPTIONS.get(unknown[0], unknown[0])}: leave it out")
    if given.get("depth", "raw") not in ("raw", "filled"):
        raise ConfigError(f"--depth {given['depth']}: choose raw or filled")
    return RECIPES[name](root.expanduser().absolute(), **given)
