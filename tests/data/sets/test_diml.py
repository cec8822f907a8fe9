"""DIML/CVD outdoor: found by search, paired by name or number, divided as documented."""

import pickle

import cv2
import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from sa2depth.data.sets import diml
from sa2depth.data.sets.diml import diml_outdoor
from sa2depth.errors import ConfigError, DataError


@pytest.fixture
def scene(tmp_path):
    """Write a scene below the folder returned; ``names`` are pairs (image, depth map), None for a missing one."""

    def make(folder, names=(("0001", "0001"), ("0002", "0002")), millimetres=2500, size=(4, 6)):
        for inner in ("outleft", "depthmap"):
            (tmp_path / "diml" / folder / inner).mkdir(parents=True, exist_ok=True)
        for image, depth in names:
            if image is not None:
                Image.new("RGB", size[::-1], (9, 8, 7)).save(
                    tmp_path / "diml" / folder / "outleft" / f"{image}.png"
                )
            if depth is not None:
                path = tmp_path / "diml" / folder / "depthmap" / f"{depth}.png"
                cv2.imwrite(str(path), np.full(size, millimetres, np.uint16))
        return tmp_path / "diml"

    return make


def ids(listing):
    return [frame.id for frame in listing.frames]


def test_layout_of_the_sample_archive(scene):
    scene("outdoor/train/LR")
    root = scene("outdoor/test/LR", millimetres=1234)
    frame = diml.outdoor(root).frames[0]
    assert frame.id == "outdoor/test/LR/0001"
    assert frame.image == root / "outdoor/test/LR/outleft/0001.png"
    assert frame.depth == root / "outdoor/test/LR/depthmap/0001.png"
    assert pickle.loads(pickle.dumps(frame)) == frame
    assert ids(diml.outdoor(root, "train")) == ["outdoor/train/LR/0001", "outdoor/train/LR/0002"]
    assert len(diml.outdoor(root, "all").frames) == 4
    sample = diml_outdoor(root)[0]
    np.testing.assert_allclose(sample.depth, 1.234, rtol=1e-6)
    assert sample.image.shape == (4, 6, 3)
    assert np.isnan(sample.intrinsics[:2]).all()


@pytest.mark.parametrize("name", ["test", "Validation", "val"])
def test_a_test_folder_decides_wherever_it_stands(scene, name):
    for number in range(3):
        scene(f"street{number}/a")
    root = scene(f"street1/{name}/b")
    assert {frame.place for frame in diml.outdoor(root, "test").frames} == {f"street1/{name}/b"}
    assert len(diml.outdoor(root, "train").frames) == 6


def test_a_file_called_test_is_not_a_test_folder(scene):
    scene("a", [("test", "test")])
    root = scene("b")
    assert ids(diml.outdoor(root, "test", test_every=2)) == [
        "a/test"
    ]  # because it is the first place, not by its name
    assert ids(diml.outdoor(root, "train", test_every=2)) == ["b/0001", "b/0002"]


def test_without_test_folder_every_kth_scene(scene):
    for number in range(7):
        root = scene(f"170721_C{number}")
    test, train = diml.outdoor(root, "test", 3), diml.outdoor(root, "train", 3)
    assert {frame.place for frame in test.frames} == {"170721_C0", "170721_C3", "170721_C6"}
    assert sorted(ids(test) + ids(train)) == ids(diml.outdoor(root, "all"))
    assert not set(ids(test)) & set(ids(train))


def test_one_folder_is_divided_by_what_its_names_share(scene):
    names = [f"{street}_{number:04d}" for street in ("hill", "park", "quay") for number in range(3)]
    root = scene("", [(name, name) for name in names])
    assert ids(diml.outdoor(root, "test", 2)) == [n for n in names if not n.startswith("park")]
    assert ids(diml.outdoor(root, "train", 2)) == ["park_0000", "park_0001", "park_0002"]


def test_training_part_is_divided_again_for_model_selection(scene):
    for number in range(6):
        root = scene(f"s{number}")
    parts = {
        part: set(diml_outdoor(root, "train", 3, part=part, every=2).ids) for part in ("fit", "held_out")
    }
    test = set(diml_outdoor(root, "test", 3).ids)
    assert not parts["fit"] & parts["held_out"]
    assert len(parts["fit"] | parts["held_out"] | test) == 12
    assert len(diml_outdoor(root, limit=3, split="all")) == 3
    assert diml_outdoor(root, ids=["s0/0002"]).ids == ["s0/0002"]


def test_both_resolutions_need_a_choice(scene):
    scene("test/HR", size=(8, 12))
    root = scene("test/LR")
    with pytest.raises(ConfigError, match=r"every image twice.*resolution=LR or HR"):
        diml.outdoor(root)
    assert ids(diml.outdoor(root, resolution="HR")) == ["test/HR/0001", "test/HR/0002"]
    assert diml_outdoor(root, resolution="LR")[0].depth.shape == (4, 6)
    assert len(diml.outdoor(root / "test" / "LR", "all").frames) == 2


def test_a_missing_resolution(scene):
    with pytest.raises(DataError, match="no folder 'HR'"):
        diml.outdoor(scene("test/LR"), resolution="HR")


@pytest.mark.parametrize(
    "names",
    [
        [("left_0001", "depth_0001"), ("left_0010", "depth_0010"), ("left_0002", "depth_0002")],
        [("0001_left", "0001"), ("0002_left", "0002"), ("0010_left", "0010")],
        [("a-1", "d01"), ("a-2", "d02"), ("a-10", "d10")],
    ],
)
def test_pairs_by_number_where_names_differ(scene, names):
    root = scene("s", names)
    listing = diml.outdoor(root, "all")
    assert [(frame.image.stem, frame.depth.stem) for frame in listing.frames] == sorted(names)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([("1", "1"), ("2", None)], "2 images; without depth map: 2\n  1 depth maps; without image: none"),
        ([("1", "1"), (None, "2")], "without depth map: none\n  2 depth maps; without image: 2"),
        ([("l1", "d1"), ("l2", "d3")], "without depth map: l1, l2\n  2 depth maps; without image: d1, d3"),
        ([("1_cam0", "1_cam1"), ("2_cam0", "2_cam1")], "without depth map: 1_cam0, 2_cam0"),
        ([("1_v2", "1_w2"), ("2_v2", "2_w2")], "without depth map: 1_v2, 2_v2"),
        ([("a", "b")], "without depth map: a\n"),
        ([(f"{n:02d}", None) for n in range(8)], "00, 01, 02, 03, 04 and 3 more"),
    ],
)
def test_files_without_partner_are_named(scene, names, told):
    root = scene("s", names)
    with pytest.raises(DataError) as caught:
        diml.outdoor(root, "all")
    assert str(root / "s") in str(caught.value)
    assert told in str(caught.value)


def test_depth_beyond_the_cap_is_not_measured(scene):
    scene("s", [("1", "1")], millimetres=30000)
    root = scene("s", [("2", "2")], millimetres=30001)
    read = diml_outdoor(root, "all", max_depth=30.0)
    np.testing.assert_allclose(read[0].depth, 30.0)
    assert (read[1].depth == 0).all()
    assert "30 m" in read.describe()


def test_the_largest_16_bit_value_is_not_a_measurement(scene):
    scene("s", [("1", "1")], millimetres=65534)
    root = scene("s", [("2", "2")], millimetres=65535)
    read = diml_outdoor(root, "all")
    np.testing.assert_allclose(read[0].depth, 65.534, rtol=1e-6)
    assert (read[1].depth == 0).all()


def test_files_left_by_macos_are_not_images(scene):
    root = scene("s")
    (root / "s" / "outleft" / "._0001.png").write_bytes(b"\0")
    assert len(diml.outdoor(root, "all").frames) == 2


def test_links_are_followed_once(scene, tmp_path):
    root = scene("s")
    (root / "s" / "up").symlink_to(root)
    (root / "again").symlink_to(root)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "there").symlink_to(root / "s")
    assert ids(diml.outdoor(root, "all")) == ["s/0001", "s/0002"]
    assert ids(diml.outdoor(tmp_path / "linked", "all")) == ["there/0001", "there/0002"]


def test_errors_name_the_missing_folders(tmp_path, scene):
    with pytest.raises(DataError, match=r"no folder 'outleft' below.*does not exist(.|\n)*paths.data_dir"):
        diml.outdoor(tmp_path / "nowhere")
    with pytest.raises(DataError, match="it has none"):
        diml.outdoor(tmp_path)
    with pytest.raises(DataError, match="found none"):
        diml.outdoor(scene("s", []), "all")
    (tmp_path / "diml" / "s" / "depthmap").rmdir()
    with pytest.raises(DataError, match="depthmap: there is no such folder"):
        diml.outdoor(tmp_path / "diml", "all")


def test_all_in_test_folders_leaves_nothing_to_train_on(scene):
    with pytest.raises(DataError, match=r"no image is left for split=train.*add the training archives"):
        diml.outdoor(scene("test"), "train")


def test_configuration_divides_once_for_all_three(compose, scene):
    for number in range(8):
        root = scene(f"s{number}")
    options = (
        "data.train.test_every=4",
        "data.train.every=3",
        "data.train.max_depth=2",
        "data.num_workers=0",
    )
    module = instantiate(compose("data=diml_outdoor", *options))
    assert module.counts() == {"train": 8, "val": 4, "test": 4}
    assert "share" not in module.describe()
    assert [frame.place for frame in module.source("test").frames] == ["s0", "s0", "s4", "s4"]
    batch = next(iter(module.test_dataloader()))
    assert (batch["depth"] == 0).all()  # 2.5 m is beyond the limit of 2 m, which train sets for all
    assert compose("data=diml_outdoor").test.root == str(root)
