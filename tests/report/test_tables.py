"""Read back the files of an evaluation: every digit, every circumstance, valid JSON."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sa2depth.metrics import METRICS, DepthMetrics, Sizes, load_protocol
from sa2depth.report import write_by_depth, write_metrics, write_table
from views import uncut

FRAME = (480, 640)


@pytest.fixture(scope="module")
def evaluated():
    depth = torch.rand(3, 1, *FRAME) * 8 + 1
    pred = depth * 1.1
    depth[1] = 0
    pred[2, 0, 100, 100] = math.nan
    metric = DepthMetrics("nyu_eigen")
    metric.update(pred, uncut(depth, torch.tensor([2, 0, 1]), ["c", "a", "ü,b"]))
    sizes = {Sizes(FRAME, FRAME, FRAME): 3}
    return replace(metric.evaluation(split_images=654), sizes=sizes)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(evaluation, path, extra=None):
    text = write_metrics(evaluation, path / "metrics.json", extra).read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_table_keeps_every_digit(evaluated, tmp_path):
    shuffled = replace(evaluated, table=evaluated.table[::-1])
    found = read_csv(write_table(shuffled, tmp_path / "new" / "per_image.csv"))
    assert list(found[0]) == ["index", "id", *METRICS, "pixels", "nonfinite_pixels"]
    assert [row["id"] for row in found] == ["a", "ü,b", "c"]
    assert [int(row["index"]) for row in found] == [0, 1, 2]
    for row, source in zip(found, evaluated.table, strict=True):
        for key in METRICS:
            value = float(row[key])
            assert value == source[key] or math.isnan(value)


def test_the_table_has_the_metrics_of_the_protocol(tmp_path):
    protocol = load_protocol("kitti_official")
    metric = DepthMetrics(protocol)
    depth = torch.rand(1, 1, 352, 1216) * 8 + 1
    metric.update(1.1 * depth, uncut(depth, ids=["a"]))
    evaluation = metric.evaluation()
    (row,) = read_csv(write_table(evaluation, tmp_path / "per_image.csv"))
    assert list(row) == ["index", "id", *protocol.metrics, "pixels", "nonfinite_pixels"]
    assert float(row["abs_error_rel"]) == pytest.approx(10.0, rel=1e-5)


def test_errors_by_depth(evaluated, tmp_path):
    found = read_csv(write_by_depth(evaluated, tmp_path / "by_depth.csv"))
    assert list(found[0]) == ["from", "to", "pixels", "abs_rel", "rmse", "d1", "bias"]
    assert len(found) == len(evaluated.protocol.depth_ranges) - 1
    assert sum(int(row["pixels"]) for row in found) == sum(row["pixels"] for row in evaluated.table)
    filled = [row for row in found if int(row["pixels"])]
    # the one NaN prediction is scored as the smallest depth
    assert sum(float(row["abs_rel"]) == pytest.approx(0.1, rel=1e-5) for row in filled) >= len(filled) - 1
    assert written(evaluated, tmp_path)["by_depth"][3]["pixels"] == int(found[3]["pixels"])


def test_metrics_and_their_circumstances(evaluated, tmp_path):
    document = written(evaluated, tmp_path / "deep", {"checkpoint": Path("a.ckpt")})
    assert document["metrics"] == {key: evaluated.means[key] for key in METRICS}
    assert (document["images"], document["empty_images"], document["evaluated_images"]) == (2, 1, 3)
    assert (document["empty_ids"], document["nonfinite_ids"]) == (["a"], ["ü,b"])
    assert document["nonfinite_pixels"] == 1
    assert document["complete"] is False
    rules = document["protocol"]
    wanted = "nyu_eigen", True, evaluated.protocol.version
    assert (rules["name"], rules["flip"], rules["version"]) == wanted
    box = {"top": 45, "bottom": 471, "left": 41, "right": 601}
    assert rules["crop_box"] == box
    assert rules["frame"] == {"height": 480, "width": 640}
    assert (rules["min_depth"], rules["max_depth"]) == (1e-3, 10.0)
    assert document["frames"] == {"480x640": {"images": 3, "crop_box": box}}
    assert document["native_sizes"] == document["input_sizes"] == {"480x640": 3}
    assert document["checkpoint"] == "a.ckpt"
    assert list(document) == sorted(document)


def test_every_frame_size_has_its_count_and_its_box(evaluated, tmp_path):
    sizes = {
        Sizes((375, 1242), (375, 1242), (352, 1216)): 2,
        Sizes((370, 1226), (370, 1226), (352, 1216)): 1,
    }
    protocol = load_protocol("kitti_eigen_garg_full")
    document = written(replace(evaluated, protocol=protocol, sizes=sizes, without_truth=45), tmp_path)
    assert document["protocol"]["frame"] is None
    assert document["protocol"]["crop_box"] is None
    assert document["frames"] == {
        "375x1242": {"images": 2, "crop_box": {"top": 153, "bottom": 371, "left": 44, "right": 1197}},
        "370x1226": {"images": 1, "crop_box": {"top": 151, "bottom": 366, "left": 44, "right": 1181}},
    }
    assert document["input_sizes"] == {"352x1216": 3}
    assert document["images_without_truth"] == 45


def test_of_files_flip_and_input_do_not_apply(evaluated, tmp_path):
    sizes = {Sizes(FRAME, FRAME, None): 3}
    document = written(replace(evaluated, sizes=sizes, network=False), tmp_path)
    assert {document["protocol"][key] for key in ("flip", "input", "input_size", "max_side")} == {
        "not applicable"
    }
    assert document["input_sizes"] == "not applicable"
    assert document["protocol"]["crop_box"]["top"] == 45


def test_complete_and_valid_json(evaluated, tmp_path):
    whole = replace(evaluated, protocol=replace(evaluated.protocol, expected_images=3), split_images=3)
    document = written(whole, tmp_path, {"speed": math.inf, "nested": [{"x": math.nan}]})
    assert document["complete"] is True
    assert (document["speed"], document["nested"]) == (None, [{"x": None}])
    partial = replace(evaluated, protocol=replace(evaluated.protocol, expected_images=None), split_images=4)
    assert written(partial, tmp_path)["complete"] is False
