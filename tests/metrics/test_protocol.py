import dataclasses

import pytest
from omegaconf import OmegaConf

from sa2depth.errors import ConfigError, DataError, ShapeError
from sa2depth.metrics import Protocol, load_protocol
from sa2depth.resources import conf_dir

GOOD = {"name": "mine", "version": 1, "min_depth": 0.1, "max_depth": 5}
SHIPPED = sorted(path.stem for path in (conf_dir() / "protocol").glob("*.yaml"))


def test_shipped_protocols_load_and_are_named_as_their_file():
    assert {"nyu_eigen", "nyu_none", "kitti_eigen_garg", "kitti_eigen_eigen", "sun_nyu_8m", "synthetic"} <= {
        *SHIPPED
    }
    for name in SHIPPED:
        protocol = load_protocol(name)
        assert protocol.name == name
        assert protocol.description.endswith(".")


def test_from_path_mapping_node_and_itself(tmp_path):
    path = tmp_path / "mine.yaml"
    OmegaConf.save(OmegaConf.create(GOOD), path)
    expected = Protocol(**GOOD)
    for source in (path, str(path), GOOD, OmegaConf.create(GOOD), expected):
        assert load_protocol(source) == expected


def test_unknown_names_and_keys_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="'kitti_garg'; did you mean kitti_eigen_garg"):
        load_protocol("kitti_garg")
    with pytest.raises(ConfigError, match=r"known: .*nyu_eigen"):
        load_protocol("zzz")
    with pytest.raises(ConfigError, match="no protocol"):
        load_protocol(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="'max_dept'; did you mean max_depth"):
        load_protocol({**GOOD, "max_dept": 3.0})
    with pytest.raises(ConfigError, match="unknown crop 'grag'; did you mean garg"):
        load_protocol({**GOOD, "crop": "grag"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_depth": 0.0}, "min_depth must be a positive"),
        ({"min_depth": 6.0}, "must be below max_depth"),
        ({"max_depth": float("inf")}, "max_depth"),
        ({"max_depth": "ten"}, "max_depth"),
        ({"clip_both_at": 0.05}, "above min_depth"),
        ({"clip_both_at": True}, "clip_both_at"),
        ({"expected_images": 1.5}, "expected_images"),
        ({"flip": 1}, "flip must be true or false"),
        ({"version": 0}, "version"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(ConfigError, match=message):
        load_protocol({**GOOD, **change})


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "a: [1\n", "name: ???\nversion: 1\nmin_depth: 1.0\nmax_depth: 2.0\n"]
)
def test_bad_files(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_protocol(path)


def test_missing_key():
    with pytest.raises(ConfigError, match="missing version, max_depth"):
        load_protocol({"name": "a", "min_depth": 1.0})


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_protocol("nyu_eigen").min_depth = 1.0


def test_crop_boxes():
    assert load_protocol("nyu_eigen").crop_box(480, 640) == (45, 471, 41, 601)
    assert load_protocol("nyu_none").crop_box(480, 640) == (0, 480, 0, 640)
    assert load_protocol("kitti_eigen_garg").crop_box(352, 1216) == (143, 349, 43, 1172)
    assert load_protocol("kitti_eigen_garg").crop_box(375, 1242) == (153, 371, 44, 1197)
    assert load_protocol("kitti_eigen_eigen").crop_box(352, 1216) == (117, 321, 43, 1172)
    with pytest.raises(ShapeError, match="480x640 frames, not on 427x561"):
        load_protocol("nyu_eigen").crop_box(427, 561)


def test_image_count():
    load_protocol("nyu_eigen").check_images(654)
    load_protocol("synthetic").check_images(3)
    with pytest.raises(DataError, match="654 images, but 653"):
        load_protocol("nyu_eigen").check_images(653)


def test_a_changed_protocol_does_not_keep_its_name():
    node = OmegaConf.load(conf_dir() / "protocol" / "nyu_eigen.yaml")
    assert load_protocol(node) == load_protocol("nyu_eigen")
    node.max_depth, node.flip = 5.0, False
    changed = load_protocol(node)
    assert changed.name == "nyu_eigen (changed: max_depth, flip)"
    assert changed.max_depth == 5.0
