"""Data: files and scenes in, batches out.

Names are imported when used, so that `sa2depth.data.index` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa2depth.data.augment import Augmentation
    from sa2depth.data.borders import BottomCentre, NyuBorder
    from sa2depth.data.datamodule import DepthDataModule
    from sa2depth.data.dataset import DepthDataset
    from sa2depth.data.sample import RawSample, Source
    from sa2depth.data.sets.custom import custom
    from sa2depth.data.sets.diml import diml_outdoor
    from sa2depth.data.sets.kitti import kitti_eigen, kitti_official
    from sa2depth.data.sets.nyu import nyu_labelled, nyu_sync
    from sa2depth.data.sets.sunrgbd import sunrgbd
    from sa2depth.data.sources import FileSource
    from sa2depth.data.synthetic import SyntheticScenes

__all__ = [
    "Augmentation",
    "BottomCentre",
    "DepthDataModule",
    "DepthDataset",
    "FileSource",
    "NyuBorder",
    "RawSample",
    "Source",
    "SyntheticScenes",
    "custom",
    "diml_outdoor",
    "kitti_eigen",
    "kitti_official",
    "nyu_labelled",
    "nyu_sync",
    "sunrgbd",
]

_HOMES = {
    "Augmentation": "augment",
    "BottomCentre": "borders",
    "DepthDataModule": "datamodule",
    "DepthDataset": "dataset",
    "FileSource": "sources",
    "NyuBorder": "borders",
    "RawSample": "sample",
    "Source": "sample",
    "SyntheticScenes": "synthetic",
    "custom": "sets.custom",
    "diml_outdoor": "sets.diml",
    "kitti_eigen": "sets.kitti",
    "kitti_official": "sets.kitti",
    "nyu_labelled": "sets.nyu",
    "nyu_sync": "sets.nyu",
    "sunrgbd": "sets.sunrgbd",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"sa2depth.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sa2depth.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
