"""Where the files lie that travel with the package: the Hydra tree and the kernel sources; and what is kept of runs.

In a checkout they stand beside ``src/``; in an installed wheel they are inside the package.
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    for candidate in (_PACKAGE / name, _PACKAGE.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the folder '{name}' is neither inside the installed package ({_PACKAGE}) nor beside its sources: "
        "reinstall sa2depth"
    )


def conf_dir() -> Path:
    """Folder of the Hydra configuration tree (``train.yaml``, ``experiment/``, ``protocol/`` ...)."""
    return _folder("conf")


def csrc_dir() -> Path:
    """Folder of the kernel sources, a folder an operator (``selective_scan/`` ...)."""
    return _folder("csrc")


def user_cache() -> Path:
    """Folder of what later processes need not compute again: ``$SA2DEPTH_CACHE``, else ``sa2depth`` in the user's.

    Raises:
        RuntimeError: a user without a home folder.
    """
    if chosen := os.environ.get("SA2DEPTH_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sa2depth"
