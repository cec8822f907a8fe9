"""The data configurations build their objects, and all splits of a data set search one folder."""

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sa2depth.data.augment.augmentation import Augmentation
from sa2depth.data.augment.borders import BottomCentre, NyuBorder
from sa2depth.data.loading.datamodule import DepthDataModule
from sa2depth.errors import DataError
from sa2depth.resources import conf_dir


def files_of(group):
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("name", files_of("data"))
def test_every_data_file_builds_a_module_without_touching_a_file(compose, name):
    module = instantiate(compose(f"data={name}", "augment=nyu", "seed=5"))
    assert isinstance(module, DepthDataModule)
    assert isinstance(module.augment, Augmentation)
    assert module.seed == 5


@pytest.mark.parametrize("name", ["nyu_labelled", "nyu_sync", "kitti_eigen", "kitti_official"])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_missing_files_are_found_at_setup(compose, tmp_path, name, stage):
    module = instantiate(compose(f"data={name}"))
    with pytest.raises(DataError, match=r"files are missing below|no annotated drive") as caught:
        module.setup(stage)
    assert str(tmp_path / name.split("_")[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split"), [("nyu_sync", "36253"), ("kitti_eigen", "train"), ("kitti_official", "train")]
)
def test_one_root_and_one_division_for_all_parts(compose, name, split):
    kitti = ["data.train.depth_root=/d"] if name.startswith("kitti") else []
    data = compose(f"data={name}", "data.train.root=/r", "data.train.every=7", *kitti)
    assert {data[part].root for part in ("train", "val", "test")} == {"/r"}
    assert data.val.every == 7
    assert (data.train.part, data.val.part) == ("fit", "held_out")
    assert data.val.split == data.train.split == split
    assert data.test.split == ("val" if name == "kitti_official" else "test")
    if kitti:
        assert data.val.depth_root == "/d"
    if name == "kitti_eigen":
        assert data.test.depth_root == "/d"
        assert compose(f"data={name}", "data.train.truth=velodyne").val.truth == "velodyne"


def test_handful_of_real_layout_trains_and_validates(compose, labelled_tree):
    _, ids = labelled_tree()
    chosen = f"[{','.join(ids)}]"
    overrides = [
        f"data.{split}.{key}" for split in ("train", "val") for key in (f"ids={chosen}", "limit=null")
    ]
    module = instantiate(compose("data=nyu_labelled_overfit", "augment=none", *overrides))
    module.setup("fit")
    assert module.counts("fit") == {"train": 6, "val": 6}
    assert "train and val share 6 images" in module.describe("fit")
    assert next(iter(module.train_dataloader()))["image"].shape == (4, 3, 24, 32)


@pytest.mark.parametrize(
    ("name", "angle", "crop", "gamma", "brightness", "color"),
    [
        ("nyu", 2.5, None, (0.9, 1.1), (0.75, 1.25), (0.9, 1.1)),
        ("kitti", 1.0, (352, 1120), (0.9, 1.1), (0.9, 1.1), (0.9, 1.1)),
    ],
)
def test_augmentation_is_the_released_one(compose, raw_sample, name, angle, crop, gamma, brightness, color):
    augment = instantiate(compose("data=kitti_eigen", f"augment={name}").augment)
    if name == "nyu":
        assert isinstance(augment.border, NyuBorder)
        assert augment.border.mode == "mask"
    else:
        assert isinstance(augment.border, BottomCentre)
        assert (augment.border.height, augment.border.width) == (352, 1216)
        assert augment(raw_sample(370, 1226), np.random.default_rng(0)).image.shape == (352, 1120, 3)
    assert augment.crop == crop
    rotate, *window, flip = augment.geometry.transforms
    assert (rotate.limit, rotate.p, flip.p) == ((-angle, angle), 1.0, 0.5)
    assert [(step.height, step.width) for step in window] == ([crop] if crop else [])
    photometric = augment.photometric
    assert photometric.probability == augment.cut_flip == 0.5
    assert (photometric.gamma, photometric.brightness, photometric.color) == (gamma, brightness, color)


@pytest.mark.parametrize("name", files_of("augment"))
def test_all_augmentations_have_the_same_switches(name):
    keys = set(OmegaConf.load(conf_dir() / "augment" / "none.yaml"))
    assert set(OmegaConf.load(conf_dir() / "augment" / f"{name}.yaml")) - {"defaults"} <= keys


@pytest.mark.parametrize("size", ["t", "s", "l"])
def test_kitti_experiments(size):
    def read(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose("train", overrides=["pretrained_encoder=null", *overrides])

    cfg = read(f"experiment=kitti_{size}")
    assert (cfg.min_depth, cfg.max_depth) == (0.1, 80.0)
    assert cfg.protocol.name == "kitti_eigen_garg"
    assert cfg.data.train._target_ == "sa2depth.data.kitti_eigen"
    assert list(cfg.augment.crop) == [352, 1120]
    assert (cfg.trainer.max_epochs, cfg.data.batch_size, cfg.optim.lr) == (50, 8, 2e-5)
    both = read(f"experiment=kitti_{size}", "data=kitti_official", "protocol=kitti_official")
    assert both.protocol.name == "kitti_official"
    assert both.data.test.split == "val"
