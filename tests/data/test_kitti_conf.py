"""The configuration files of KITTI: what they build, and that every part looks in one place."""

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import instantiate

from sa2depth.data.augment.borders import BottomCentre
from sa2depth.data.loading.datamodule import DepthDataModule
from sa2depth.errors import DataError
from sa2depth.resources import conf_dir


def compose(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose("train", overrides=["pretrained_encoder=null", *overrides])


@pytest.mark.parametrize("name", ["kitti_eigen", "kitti_official"])
def test_all_parts_look_in_one_place(name):
    data = compose(
        f"data={name}", "data.train.root=/r", "data.train.depth_root=/d", "data.train.every=7"
    ).data
    assert {data[split].root for split in ("train", "val", "test")} == {"/r"}
    assert data.val.depth_root == "/d"
    assert data.val.every == 7
    assert (data.train.part, data.val.part) == ("fit", "held_out")
    assert (data.train.split, data.val.split) == ("train", "train")
    if name == "kitti_eigen":
        assert data.test.depth_root == "/d"
        assert compose(f"data={name}", "data.train.truth=velodyne").data.val.truth == "velodyne"


@pytest.mark.parametrize("name", ["kitti_eigen", "kitti_official"])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_missing_files_are_found_at_setup(tmp_path, name, stage):
    module = instantiate(compose(f"data={name}", f"paths.data_dir={tmp_path}").data)
    assert isinstance(module, DepthDataModule)
    with pytest.raises(DataError, match=r"files are missing below|no annotated drive") as caught:
        module.setup(stage)
    assert str(tmp_path / "kitti") in str(caught.value)


@pytest.mark.parametrize("size", ["t", "s", "l"])
def test_experiments(size):
    cfg = compose(f"experiment=kitti_{size}")
    assert (cfg.min_depth, cfg.max_depth) == (0.1, 80.0)
    assert cfg.protocol.name == "kitti_eigen_garg"
    assert cfg.data.train._target_ == "sa2depth.data.kitti_eigen"
    assert list(cfg.augment.crop) == [352, 1120]
    assert (cfg.trainer.max_epochs, cfg.data.batch_size, cfg.optim.lr) == (50, 8, 2e-5)
    both = compose(f"experiment=kitti_{size}", "data=kitti_official", "protocol=kitti_official")
    assert both.protocol.name == "kitti_official"
    assert both.data.test.split == "val"


def test_augmentation_is_the_released_one(raw_sample):
    augment = instantiate(compose("data=kitti_eigen", "augment=kitti").augment)
    assert isinstance(augment.border, BottomCentre)
    assert (augment.border.height, augment.border.width) == (352, 1216)
    rotate, crop, flip = augment.geometry.transforms
    assert (rotate.limit, rotate.p) == ((-1.0, 1.0), 1.0)
    assert (crop.height, crop.width) == (352, 1120)
    assert flip.p == 0.5
    photometric = augment.photometric
    assert photometric.probability == augment.cut_flip == 0.5
    assert photometric.gamma == photometric.brightness == photometric.color == (0.9, 1.1)
    assert augment(raw_sample(370, 1226), np.random.default_rng(0)).image.shape == (352, 1120, 3)
