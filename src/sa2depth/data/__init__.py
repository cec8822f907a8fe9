"""Data: files and scenes in, batches out.

Names are imported when used, so that listings (`sa2depth.data.sets`) need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa2depth.data.augment.augmentation import Augmentation
    from sa2depth.data.augment.borders import BottomCentre, NyuBorder
    from sa2depth.data.loading.datamodule import DepthDataModule
    from sa2depth.data.loading.dataset import DepthDataset
    from sa2depth.data.sample import RawSample, Source
    from sa2depth.data.sets.custom_factory import custom
    from sa2depth.data.sets.diml_factory import diml_outdoor
    from sa2depth.data.sets.kitti.factory import kitti_eigen, kitti_official
    from sa2depth.data.sets.nyu.factory import nyu_labelled, nyu_sync
    from sa2depth.data.sets.sunrgbd_factory import sunrgbd
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
    "Augmentation": "sa2depth.data.augment.augmentation",
    "BottomCentre": "sa2depth.data.augment.borders",
    "DepthDataModule": "sa2depth.data.loading.datamodule",
    "DepthDataset": "sa2depth.data.loading.dataset",
    "FileSource": "sa2depth.data.source",
    "NyuBorder": "sa2depth.data.augment.borders",
    "RawSample": "sa2depth.data.sample",
    "Source": "sa2depth.data.sample",
    "SyntheticScenes": "sa2depth.scenes",
    "custom": "sa2depth.data.sets.custom_factory",
    "diml_outdoor": "sa2depth.data.sets.diml_factory",
    "kitti_eigen": "sa2depth.data.sets.kitti.factory",
    "kitti_official": "sa2depth.data.sets.kitti.factory",
    "nyu_labelled": "sa2depth.data.sets.nyu.factory",
    "nyu_sync": "sa2depth.data.sets.nyu.factory",
    "sunrgbd": "sa2depth.data.sets.sunrgbd_factory",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sa2depth.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
