"""The configuration files of this room build what they say."""

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sa2depth.data.augment.augmentation import Augmentation
from sa2depth.data.augment.borders import NyuBorder
from sa2depth.data.loading.datamodule import DepthDataModule
from sa2depth.errors import DataError
from sa2depth.resources import conf_dir


def compose(tmp_path, data, augment="nyu", overrides=()):
    (tmp_path / "conf").mkdir(exist_ok=True)
    (tmp_path / "conf" / "room.yaml").write_text(
        "defaults: [_self_, {data: '???'}, {augment: '???'}]\n"
        "seed: 5\n"
        f"paths: {{data_dir: {tmp_path}}}\n"
        f"hydra: {{searchpath: ['file://{conf_dir()}']}}\n"
    )
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        return hydra_compose("room", overrides=[f"data={data}", f"augment={augment}", *overrides])


@pytest.mark.parametrize("name", ["nyu_labelled", "nyu_sync", "nyu_labelled_overfit", "synthetic"])
def test_every_data_file_builds_a_module_without_touching_a_file(tmp_path, name):
    module = instantiate(compose(tmp_path, name).data)
    assert isinstance(module, DepthDataModule)
    assert isinstance(module.augment, Augmentation)
    assert module.seed == 5


@pytest.mark.parametrize("name", ["nyu_labelled", "nyu_sync"])
def test_missing_files_are_found_at_setup(tmp_path, name):
    module = instantiate(compose(tmp_path, name).data)
    with pytest.raises(DataError, match="files are missing below"):
        module.setup("fit")


def test_one_root_and_one_division_for_all_parts(tmp_path):
    data = compose(tmp_path, "nyu_sync", overrides=["data.train.root=/r", "data.train.every=7"]).data
    assert {data[split].root for split in ("train", "val", "test")} == {"/r"}
    assert data.val.every == 7
    assert (data.train.part, data.val.part) == ("fit", "held_out")
    assert data.val.split == data.train.split == "36253"
    assert data.test.split == "test"


def test_handful_of_real_layout_trains_and_validates(tmp_path, labelled_tree):
    _, ids = labelled_tree()
    chosen = f"[{','.join(ids)}]"
    overrides = [
        f"data.{split}.{key}" for split in ("train", "val") for key in (f"ids={chosen}", "limit=null")
    ]
    config = compose(tmp_path, "nyu_labelled_overfit", "none", overrides)
    module = instantiate(config.data)
    module.setup("fit")
    assert module.counts("fit") == {"train": 6, "val": 6}
    assert "train and val share 6 images" in module.describe("fit")
    assert next(iter(module.train_dataloader()))["image"].shape == (4, 3, 24, 32)


def test_nyu_augmentation_is_the_released_one(tmp_path):
    augment = instantiate(compose(tmp_path, "nyu_labelled").augment)
    assert isinstance(augment.border, NyuBorder)
    assert augment.border.mode == "mask"
    assert augment.cut_flip == 0.5
    photometric = augment.photometric
    assert photometric.probability == 0.5
    assert (photometric.gamma, photometric.brightness, photometric.color) == (
        (0.9, 1.1),
        (0.75, 1.25),
        (0.9, 1.1),
    )
    assert augment.crop is None
    rotate, flip = augment.geometry.transforms
    assert (rotate.limit, rotate.p) == ((-2.5, 2.5), 1.0)
    assert flip.p == 0.5


@pytest.mark.parametrize("name", ["none", "nyu", "synthetic"])
def test_all_augmentations_have_the_same_switches(name):
    keys = set(OmegaConf.load(conf_dir() / "augment" / "none.yaml"))
    assert set(OmegaConf.load(conf_dir() / "augment" / f"{name}.yaml")) - {"defaults"} <= keys
