"""Data: files and scenes in, batches out.

Names are imported when used, so that listings (`sa2depth.data.sets`) need no torch. This package also
exports the factories of the data sets, for example `sa2depth.data.nyu_sync`, and `sa2depth.data.SyntheticScenes`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa2depth.data.augment.augmentation import Augmentation
    from sa2depth.data.augment.borders import BottomCentre, NyuBorder
    from sa2depth.data.loading.datamodule import DepthDataModule
    from sa2depth.data.loading.dataset import DepthDataset
    from sa2depth.data.sample import RawSample, Source
    from sa2depth.data.source import FileSource

__all__ = [
    "Augmentation",
    "BottomCentre",
    "DepthDataModule",
    "DepthDataset",
    "FileSource",
    "NyuBorder",
    "RawSample",
    "Source",
]

_HOMES = {
    "Augmentation": "sa2depth.data.augment.augmentation",
    "BottomCentre": "sa2depth.data.augment.borders",
    "DepthDataModule": "sa2depth.data.loading.datamodule",
    "DepthDataset": "sa2depth.data.loading.dataset",
    "FileSource": "sa2depth.data.source",
    "NyuBorder": "sa2depth.data.augment.borders",
    "RawSample": "sa2depth.data.sample",
    "Source": "sa2depth.data.sample",
    "SyntheticScenes": "sa2depth.scenes",  # configurations and checkpoints use this name
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if not name.startswith("_") and name in (factories := _factories()):
        return factories[name]
    raise AttributeError(f"module 'sa2depth.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_factories()})


def _factories() -> dict[str, Any]:
    factories: dict[str, Any] = import_module("sa2depth.data.sets").factories()
    return factories
