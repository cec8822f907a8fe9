"""Folders of the files that belong to the package (the Hydra tree, the kernel sources), and the user's cache.

In a checkout the package's files lie beside ``src/``; in an installed wheel they are inside the package.
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    for candidate in (_PACKAGE / name, _PACKAGE.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the folder '{name}' is neither inside the installed package ({_PACKAGE}) nor beside its source: "
        "reinstall sa2depth"
    )


def conf_dir() -> Path:
    """Folder of the Hydra configuration tree (``train.yaml``, ``experiment/``, ``protocol/`` ...)."""
    return _folder("conf")


def csrc_dir() -> Path:
    """Folder of the kernel sources, with one folder per operator (``selective_scan/`` ...)."""
    return _folder("csrc")


def user_cache() -> Path:
    """Folder of results that later processes reuse: ``$SA2DEPTH_CACHE``, else ``sa2depth`` in the user's cache.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if chosen := os.environ.get("SA2DEPTH_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sa2depth"
