import dataclasses

import pytest
from omegaconf import OmegaConf

from sa2depth.errors import ConfigError, DataError, ShapeError
from sa2depth.metrics import Protocol, load_protocol
from sa2depth.resources import conf_dir

GOOD = {"name": "mine", "version": 1, "min_depth": 0.1, "max_depth": 5}
COUNTS = {
    "nyu_eigen": (654, 0),
    "nyu_none": (654, 0),
    "kitti_eigen_garg": (652, 45),
    "kitti_eigen_garg_full": (652, 45),
    "kitti_eigen_eigen": (652, 45),
    "kitti_official": (1000, 0),
    "sun_nyu_8m": (5050, 0),
    "sun_mask_8m": (5050, 0),
}
SHIPPED = sorted(path.stem for path in (conf_dir() / "protocol").glob("*.yaml"))


def test_shipped_protocols_load_and_are_named_as_their_file():
    assert set(SHIPPED) == {*COUNTS, "diml_outdoor", "synthetic", "custom"}
    for name in SHIPPED:
        if name == "custom":
            continue
        protocol = load_protocol(name)
        assert protocol.name == name
        assert protocol.description.endswith(".")
        assert (protocol.expected_images, protocol.images_without_truth) == COUNTS.get(name, (None, 0))


# the fields that decide what the network sees: input, input_size, max_side, frame, flip
VIEWS = {
    "nyu_eigen": ("as_is", None, None, None, True),
    "nyu_none": ("as_is", None, None, None, True),
    "kitti_eigen_garg": ("as_is", None, None, (352, 1216), True),
    "kitti_eigen_garg_full": ("bottom_centre", (352, 1216), None, None, True),
    "kitti_eigen_eigen": ("as_is", None, None, (352, 1216), True),
    "kitti_official": ("as_is", None, None, None, True),
    "sun_nyu_8m": ("resize", (480, 640), None, None, True),
    "sun_mask_8m": ("resize", (480, 640), None, None, True),
    "diml_outdoor": ("max_side", None, 1216, None, True),
    "synthetic": ("pad", None, None, None, False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_the_network_sees_under_a_shipped_protocol(name):
    rules = load_protocol(name)
    assert (rules.input, rules.input_size, rules.max_side, rules.frame, rules.flip) == VIEWS[name]


def test_shipped_files_name_every_field_so_that_the_command_line_can_change_it():
    for name in SHIPPED:
        node = OmegaConf.load(conf_dir() / "protocol" / f"{name}.yaml")
        assert list(node) == [field.name for field in dataclasses.fields(Protocol)], name


def test_the_custom_protocol_asks_for_its_limit():
    with pytest.raises(ConfigError, match=r"max_depth must be given: set protocol\.max_depth="):
        load_protocol("custom")
    node = OmegaConf.load(conf_dir() / "protocol" / "custom.yaml")
    with pytest.raises(ConfigError, match="max_depth must be given"):
        load_protocol(node)
    node.max_depth = 30
    protocol = load_protocol(node)
    assert (protocol.name, protocol.max_depth) == ("custom", 30)
    node.crop = "garg"
    assert load_protocol(node).name == "custom (changed: crop)"


def test_from_path_mapping_node_and_itself(tmp_path):
    path = tmp_path / "mine.yaml"
    OmegaConf.save(OmegaConf.create(GOOD), path)
    expected = Protocol(**GOOD)
    for source in (path, str(path), GOOD, OmegaConf.create(GOOD), expected):
        assert load_protocol(source) == expected


def test_unknown_names_and_keys_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="'kitti_garg'; did you mean kitti_eigen_garg"):
        load_protocol("kitti_garg")
    with pytest.raises(ConfigError, match=r"choose one of .*nyu_eigen"):
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
        ({"images_without_truth": -1}, "images_without_truth must be a whole number from 0"),
        ({"images_without_truth": None}, "images_without_truth"),
        ({"frame": [352]}, r"frame must be \[height, width\]"),
        ({"frame": [0, 5]}, "frame"),
        ({"frame": [3.5, 5]}, "frame"),
        ({"frame": 352}, "frame"),
        ({"input": "padd"}, "unknown input 'padd'; did you mean pad"),
        ({"input": "resize"}, "input=resize needs input_size"),
        ({"input": "bottom_centre"}, "input=bottom_centre needs input_size"),
        ({"input": "max_side"}, "input=max_side needs max_side"),
        ({"input_size": [5, 6]}, "input_size is for input=resize or bottom_centre, but input is as_is"),
        ({"input": "pad", "max_side": 9}, "max_side is for input=max_side, but input is pad"),
        ({"input": "resize", "input_size": [5, 6], "max_side": 9}, "max_side is for"),
        ({"input": "max_side", "max_side": 0}, "max_side must be a positive"),
        ({"metrics": ["abs_rel", "d4"]}, "unknown metric 'd4'; did you mean"),
        ({"metrics": ["silog", "d1"]}, "must contain abs_rel, because models are selected by it"),
        ({"metrics": ["abs_rel", "d1", "abs_rel"]}, "twice"),
        ({"metrics": "abs_rel"}, "metrics must be a list"),
        ({"depth_ranges": [3]}, "two or more rising depths in metres"),
        ({"depth_ranges": [0, 3, 3]}, "two or more rising depths in metres"),
        ({"depth_ranges": [-1, 3]}, "two or more rising depths in metres from 0"),
        ({"depth_ranges": [0, float("inf")]}, "depth_ranges must be a list of metres"),
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
    with pytest.raises(ConfigError, match="version, max_depth must be given"):
        load_protocol({"name": "a", "min_depth": 1.0})


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_protocol("nyu_eigen").min_depth = 1.0


def test_crop_boxes_of_nyu():
    assert load_protocol("nyu_eigen").crop_box(480, 640) == (45, 471, 41, 601)
    assert load_protocol("nyu_none").crop_box(480, 640) == (0, 480, 0, 640)
    with pytest.raises(ShapeError, match="480x640 frames, not on 427x561"):
        load_protocol("nyu_eigen").crop_box(427, 561)


def test_crop_boxes_of_sun_are_nyus_pixels_on_any_frame():
    sun = load_protocol("sun_nyu_8m")
    assert sun.crop_box(530, 730) == (45, 471, 41, 601)
    assert sun.crop_box(441, 591) == (45, 441, 41, 591)
    with pytest.raises(ShapeError, match="leaves nothing of a 45x640 frame"):
        sun.crop_box(45, 640)
    assert load_protocol("sun_mask_8m").crop_box(427, 561) == (0, 427, 0, 561)


# For each size of KITTI's images: the start of the 352x1216 frame, and the scored boxes in pixels of the image.
KITTI = {
    (370, 1224): ((18, 4), (161, 367, 47, 1176), (151, 366, 43, 1180), (135, 339, 47, 1176)),
    (374, 1238): ((22, 11), (165, 371, 54, 1183), (152, 370, 44, 1193), (139, 343, 54, 1183)),
    (375, 1242): ((23, 13), (166, 372, 56, 1185), (153, 371, 44, 1197), (140, 344, 56, 1185)),
    (376, 1241): ((24, 12), (167, 373, 55, 1184), (153, 372, 44, 1196), (141, 345, 55, 1184)),
    (352, 1216): ((0, 0), (143, 349, 43, 1172), (143, 349, 43, 1172), (117, 321, 43, 1172)),
}


@pytest.mark.parametrize("size", KITTI)
def test_crop_boxes_of_kitti(size):
    (top, left), *boxes = KITTI[size]
    names = ("kitti_eigen_garg", "kitti_eigen_garg_full", "kitti_eigen_eigen")
    protocols = [load_protocol(name) for name in names]
    assert [protocol.crop_box(*size) for protocol in protocols] == boxes
    window = (top, top + 352, left, left + 1216)
    assert protocols[0].frame_box(*size) == protocols[2].frame_box(*size) == window
    assert protocols[1].frame_box(*size) == (0, size[0], 0, size[1])
    # all boxes are the same relative to the frame, wherever the frame lies
    assert boxes[0] == (143 + top, 349 + top, 43 + left, 1172 + left)
    # the network has seen everything that the full protocol scores
    assert protocols[1].input_box(*size) == window
    assert window[0] <= boxes[1][0] < boxes[1][1] <= window[1]
    assert window[2] <= boxes[1][2] < boxes[1][3] <= window[3]


def test_images_smaller_than_the_frame():
    with pytest.raises(ShapeError, match=r"the frame is 352x1216 pixels .* an image is only 350x1242"):
        load_protocol("kitti_eigen_garg").crop_box(350, 1242)
    with pytest.raises(ShapeError, match="network's window is 352x1216"):
        load_protocol("kitti_eigen_garg_full").input_box(375, 1200)


def test_what_the_network_has_not_seen_cannot_be_scored():
    full = load_protocol("kitti_eigen_garg_full")
    with pytest.raises(ShapeError, match="does not hold the scored box rows 0-374, columns 0-1241"):
        dataclasses.replace(full, crop="none").input_box(375, 1242)
    for wide_or_high in ((375, 1400), (700, 1242)):
        with pytest.raises(ShapeError, match="does not hold the scored box"):
            full.input_box(*wide_or_high)


def test_image_count():
    load_protocol("nyu_eigen").check_images(654)
    load_protocol("synthetic").check_images(3)
    for found in (653, 655):
        with pytest.raises(DataError, match=f"654 images, but {found}"):
            load_protocol("nyu_eigen").check_images(found)
    for name in ("synthetic", "nyu_eigen"):
        with pytest.raises(DataError, match="no image to evaluate"):
            load_protocol(name).check_images(0)


def test_missing_truth_is_an_error_unless_the_protocol_expects_it():
    kitti = load_protocol("kitti_eigen_garg")
    kitti.check_images(652, 45)
    for without in (0, 44, 46):
        with pytest.raises(DataError, match=f"45 images without ground truth, but {without} were found"):
            kitti.check_images(652, without)
    with pytest.raises(DataError, match="652 images, but 651"):
        kitti.check_images(651, 46)
    for name in ("nyu_eigen", "synthetic"):
        protocol = load_protocol(name)
        with pytest.raises(DataError, match="0 images without ground truth, but 1 were found"):
            protocol.check_images(protocol.expected_images or 5, 1)
    # a partial split may hold fewer images without truth, not more
    part = dataclasses.replace(kitti, expected_images=None)
    for without in (0, 3, 45):
        part.check_images(10, without)
    with pytest.raises(DataError, match="46 were found"):
        part.check_images(10, 46)


def test_a_changed_protocol_does_not_keep_its_name():
    node = OmegaConf.load(conf_dir() / "protocol" / "nyu_eigen.yaml")
    assert load_protocol(node) == load_protocol("nyu_eigen")
    node.max_depth, node.flip = 5.0, False
    changed = load_protocol(node)
    assert changed.name == "nyu_eigen (changed: max_depth, flip)"
    assert changed.max_depth == 5.0
    node = OmegaConf.load(conf_dir() / "protocol" / "kitti_eigen_garg.yaml")
    node.expected_images, node.images_without_truth, node.metrics = 3, 0, ["abs_rel"]
    node.frame, node.depth_ranges = [320, 1216], []
    assert load_protocol(node).name == (
        "kitti_eigen_garg (changed: expected_images, images_without_truth, frame, metrics, depth_ranges)"
    )


def test_lists_become_tuples():
    lists = {"frame": [3, 4], "metrics": ["abs_rel", "d1"], "depth_ranges": [0, 2.5]}
    sized = {"input": "resize", "input_size": [32, 64]}
    protocol = load_protocol({**GOOD, **lists, **sized})
    assert protocol == Protocol(
        **GOOD,
        frame=(3, 4),
        metrics=("abs_rel", "d1"),
        depth_ranges=(0, 2.5),
        input="resize",
        input_size=(32, 64),
    )
    assert hash(protocol)


def test_describes_itself():
    lines = load_protocol("kitti_eigen_garg").describe((375, 1242))
    assert lines[0].startswith("protocol: kitti_eigen_garg v1: KITTI Eigen split")
    assert lines[1:] == [
        "images: 652, 45 more without truth",
        "frame: bottom-centre 352x1216 of the image",
        "input: the frame as it is",
        "crop: garg, rows 166-371, columns 56-1184 of 375x1242",
        "depth: 0.001-80 m, limits excluded",
        "flip averaging: yes",
        "metrics: silog, abs_rel, log10, rmse, sq_rel, log_rmse, d1, d2, d3; mean of per-image errors",
        "also by true depth: 0, 5, 10, 20, 30, 40, 50, 60, 70, 80 m",
    ]
    assert (
        "crop: garg, rows 143-348, columns 43-1171 of 352x1216"
        in load_protocol("kitti_eigen_garg").describe()
    )
    assert "crop: nyu_eigen, rows 45-470, columns 41-600 of 480x640" in load_protocol("nyu_eigen").describe()


def test_a_multiple_that_is_not_32_is_said_and_refused_where_the_frame_goes_in_as_it_is():
    def told(name, multiple):
        lines = dict(line.split(": ", 1) for line in load_protocol(name).describe(multiple=multiple))
        return lines["input"]

    assert told("synthetic", 14).endswith("up to the next multiple of 14")
    assert told("sun_nyu_8m", 14) == (
        "the frame resized to 480x640, mirrored up to 490x644 (multiples of 14), the prediction resized back (bilinear)"
    )
    assert told("kitti_eigen_garg_full", 64) == (
        "bottom-centre 352x1216 of the frame, mirrored up to 384x1216 (multiples of 64)"
    )
    assert told("kitti_eigen_garg_full", 16) == "bottom-centre 352x1216 of the frame"
    for name, multiple, frame in (("nyu_eigen", 14, "480x640"), ("kitti_eigen_garg", 64, "352x1216")):
        with pytest.raises(
            ShapeError, match=rf"'{name}': a {frame} frame .*multiples of {multiple}: use protocol.input=pad"
        ):
            load_protocol(name).check_multiple(multiple)
    with pytest.raises(ShapeError, match=r"'nyu_none': a 480x640 frame .*multiples of 14"):
        load_protocol("nyu_none").check_multiple(14, (480, 640))
    for name in ("synthetic", "sun_nyu_8m", "diml_outdoor", "kitti_eigen_garg_full"):
        load_protocol(name).check_multiple(14)
    load_protocol("nyu_eigen").check_multiple(32, (480, 640))
    load_protocol("nyu_eigen").check_multiple(16)
    with pytest.raises(ShapeError, match="the frame is 352x1216 pixels"):
        load_protocol("kitti_eigen_garg").check_multiple(32, (100, 100))


def test_descriptions_name_what_differs():
    words = {
        "sun_nyu_8m": ["resized to 480x640", "crop: nyu_pixels", "both clipped at 8 m", "images: 5,050"],
        "kitti_eigen_garg_full": ["frame: whole image", "input: bottom-centre 352x1216", "crop: garg"],
        "diml_outdoor": ["at most 1216 pixels", "images: any number"],
        "synthetic": ["multiple of 32", "flip averaging: no"],
        "kitti_official": ["metrics: silog, sq_error_rel, abs_error_rel, irmse", "0.001-256 m"],
    }
    for name, expected in words.items():
        text = "\n".join(load_protocol(name).describe())
        for word in expected:
            assert word in text, (name, word)
    with pytest.raises(ShapeError):
        load_protocol("kitti_eigen_garg").describe((100, 100))
    changed = dataclasses.replace(load_protocol("nyu_eigen"), depth_ranges=())
    assert not any(line.startswith("also by") for line in changed.describe())
