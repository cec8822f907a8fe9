"""The texts of the sections of the page about a run."""

import json
import math
import re

import pytest

from made_run import PROTOCOL, Page, edit, make_run, row, save_noise, scores


def test_by_depth(tmp_path):
    page = Page(make_run(tmp_path / "run"))
    for words in ("2–5", "≥ 5", "61.7 %"):  # 1234 of 2000 pixels
        assert words in page.text
    bars = re.findall(r"<title>((?:0–2|2–5|≥ 5).*?)</title>", page.source)
    assert {"0–2: 0.0713", "≥ 5: −0.4560"} <= set(bars)
    assert not [bar for bar in bars if bar.startswith("2–5") and not bar.endswith("0 %")]


def test_nonfinite_predictions_are_said_loudly(tmp_path):
    assert "alert" not in Page(make_run(tmp_path / "calm")).values("role")
    rows = [row(0, "good", 0.1), row(1, "broken", 0.2, nonfinite_pixels=1234), row(2, "empty", 0.3, pixels=0)]
    page = Page(make_run(tmp_path / "run", rows=rows, complete=False))
    assert "alert" in page.values("role")
    for words in (
        "The model predicted NaN or infinity. 1,234 pixels in 1 image are not finite",
        "1 image without a scored pixel",
        "Only part of the split was evaluated. The full split has 654 images, and 3 images were evaluated",
        "1 without a finite value",
    ):
        assert words in page.text
    assert "in 2 images" not in page.text
    assert "NaN" in page.texts  # a cell of the table


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({"metrics": {**scores(0.7 / 3), "rmse": None}}, ["Not a number: RMSE."], []),
        ({"metrics": scores(0.3)}, ["they are from different evaluations"], []),
        (  # such a baseline is neither a column nor a claim
            {"baselines": {"median_depth_map": {"not_run": "the images differ in size"}}},
            ["Median depth map: not run: the images differ in size."], ["not a number", "median depth map"],
        ),
        (
            {"protocol": {**PROTOCOL, "flip": "not applicable"}, "predictions": "12 npy"},
            ["Flip averaging not applicable", "Predictions 12 npy"], [],
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_an_entry(tmp_path, changes, said, unsaid):
    text = Page(make_run(tmp_path / "run", **changes)).text
    assert [words for words in [*said, *unsaid] if words in text] == said


def test_pictures_that_are_not_there_or_not_ours(tmp_path):
    save_noise(tmp_path / "secret.png", 8, 8)
    run = make_run(tmp_path / "run")
    (run / "pictures/best_1.png").unlink()
    (run / "pictures/spread_1.png").write_bytes(b"no picture")
    listed = json.loads((run / "metrics.json").read_text())["pictures"]
    edit(run, pictures=[*listed, {"kind": "worst", "id": "x", "file": "../secret.png"}, "nonsense"])
    page = Page(run)
    assert page.tags.count("img") == 1
    for words in ("best_1.png is named in metrics.json but does not exist", "../secret.png lies outside",
                  "spread_1.png is not a readable picture"):  # fmt: skip
        assert words in page.text


def test_worst_images_come_first(tmp_path):
    rows = [row(i, f"id{i}", value) for i, value in enumerate((0.2, 0.9, 0.1))]
    rows.append(row(3, "id3", math.nan, pixels=0))
    page = Page(make_run(tmp_path / "run", rows=rows, pictures=False))
    table = page.source[page.source.index('id="images"') :]
    assert re.findall(r">(id\d)<", table) == ["id1", "id0", "id2", "id3"]
