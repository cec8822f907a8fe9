import json

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sa2depth.cli import app
from sa2depth.cli.data.choose import build_sources, compose_data
from sa2depth.errors import ConfigError


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("SA2DEPTH_DATA", str(tmp_path / "nothing"))

    def call(*arguments):
        return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])

    return call


@pytest.fixture
def folders(tmp_path):
    """Two parallel folders with two places of three images; returns overrides that name them."""
    rng = np.random.default_rng(0)
    for place in "ab":
        for kind in ("images", "depths"):
            (tmp_path / kind / place).mkdir(parents=True)
        for number in range(3):
            photo = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(photo).save(tmp_path / f"images/{place}/{number}.jpg")
            depth = np.linspace(1000, 9000, 24 * 32).reshape(24, 32).astype(np.uint16)
            cv2.imwrite(str(tmp_path / f"depths/{place}/{number}.png"), depth)
    where = f"data.train.images={tmp_path / 'images'}", f"data.train.depths={tmp_path / 'depths'}"
    return tmp_path, [*where, "data.train.scale=1000", "data.train.every=2"]


def test_a_good_data_set_ends_with_one_verdict_and_status_0(run, folders):
    result = run("custom", *folders[1])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "GOOD: all 6 images opened, nothing is wrong"
    assert "6 in its list; 6 opened" in result.output


def test_problems_are_named_counted_and_written_with_status_1(run, folders):
    root, overrides = folders
    broken = root / "images/a/1.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    cv2.imwrite(str(root / "depths/b/0.png"), np.ones((24, 32), np.uint8))
    result = run("custom", *overrides, "--json", root / "found.json")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[-1] == "NOT GOOD: 2 problems (1 unreadable, 1 wrong format); all 6 images opened"
    assert "1 files that cannot be read" in result.output
    assert "a/1.jpg" in result.output
    assert "depths/b/0.png" in result.output
    found = json.loads((root / "found.json").read_text())
    assert found["good"] is False
    kinds = {p["kind"]: p for part in found["splits"] for p in part["problems"]}
    assert kinds["unreadable"]["file"] == str(broken)
    assert "uint8" in kinds["wrong_format"]["message"]


def test_a_missing_tree_is_all_missing_with_advice(run, tmp_path):
    result = run(
        "nyu_labelled", "--root", tmp_path / "elsewhere", "--split", "test", "--json", tmp_path / "f"
    )
    assert result.exit_code == 1
    assert "files   1,308, 1,308 missing" in result.output
    assert "official_splits" in result.output
    assert str(tmp_path / "elsewhere") in result.output
    assert "NYU v2 labelled, train" not in result.output
    assert len(json.loads((tmp_path / "f").read_text())["splits"][0]["problems"]) == 1308


def test_synthetic_scenes_can_be_checked(run):
    sizes = "data.train.count=2", "data.val.count=1", "data.test.count=1"
    result = run("synthetic", "--quick", *sizes, "data.train.height=24", "data.train.width=32")
    assert result.exit_code == 0, result.output
    assert "all 4 images opened" in result.output


def test_ctrl_c_gives_no_verdict(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sa2depth.data.check.data_set.check", interrupted)
    result = run("synthetic")
    assert result.exit_code == 130
    assert "interrupted: no verdict" in result.output
    assert "GOOD" not in result.output


def test_overrides_and_root_reach_the_sources(tmp_path):
    cfg = compose_data("nyu_sync", tmp_path, ["data.train.split=24231"])
    sources, unlisted = build_sources(cfg)
    assert not unlisted
    assert sources["train"].listing.title == "NYU v2 sync 24231"
    assert sources["test"].listing.root.is_relative_to(tmp_path)
    assert set(sources) == {"train", "val", "test"}


def test_an_augmentation_is_chosen_by_name():
    assert compose_data("nyu_sync", augment="nyu").data.augment.rotation == 2.5
    with pytest.raises(ConfigError, match="did you mean nyu"):
        compose_data("nyu_sync", augment="nyuu")
