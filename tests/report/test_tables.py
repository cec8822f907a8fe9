import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from sa2depth.metrics import METRICS, DepthMetrics
from sa2depth.report import write_metrics, write_table


def evaluated():
    depth = torch.rand(3, 1, 480, 640) * 8 + 1
    pred = depth * 1.1
    depth[1] = 0
    pred[2, 0, 100, 100] = math.nan
    metric = DepthMetrics("nyu_eigen")
    metric.update(pred, depth, torch.tensor([2, 0, 1]), ["c", "a", "ü,b"])
    return metric


def test_files(tmp_path):
    metric = evaluated()
    means, rows, protocol = metric.compute(), metric.table(), metric.protocol
    table = write_table(reversed(rows), tmp_path / "new" / "per_image.csv")
    with table.open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["id"] for row in written] == ["a", "ü,b", "c"]
    assert [int(row["index"]) for row in written] == [0, 1, 2]
    for row, source in zip(written, rows, strict=True):
        for key in METRICS:
            value = float(row[key])
            assert value == source[key] or math.isnan(value)  # repr keeps every digit
    path = write_metrics(
        means, rows, protocol, (480, 640), tmp_path / "deep" / "metrics.json", {"checkpoint": Path("a.ckpt")}
    )
    document = json.loads(path.read_text())
    assert document["metrics"] == {key: means[key] for key in METRICS}
    assert (document["images"], document["empty_images"], document["evaluated_images"]) == (2, 1, 3)
    assert (document["empty_ids"], document["nonfinite_ids"]) == (["a"], ["ü,b"])
    assert document["nonfinite_pixels"] == 1
    assert document["complete"] is False
    rules = document["protocol"]
    assert (rules["name"], rules["version"], rules["flip"]) == ("nyu_eigen", 1, True)
    assert rules["crop_box"] == {"top": 45, "bottom": 471, "left": 41, "right": 601}
    assert (rules["min_depth"], rules["max_depth"]) == (1e-3, 10.0)
    assert document["checkpoint"] == "a.ckpt"
    assert list(document) == sorted(document)


def test_complete_and_valid_json(tmp_path):
    metric = evaluated()
    protocol = replace(metric.protocol, expected_images=3)
    extra = {"speed": math.inf, "nested": [{"x": math.nan}]}
    path = write_metrics(metric.compute(), metric.table(), protocol, (480, 640), tmp_path / "m.json", extra)
    document = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert document["complete"] is True
    assert (document["speed"], document["nested"]) == (None, [{"x": None}])
