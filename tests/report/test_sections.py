"""What the sections of the page say about a run."""

import math
import re

from made_run import Page, edit, make_run, row, scores


def test_by_depth(tmp_path):
    page = Page(make_run(tmp_path / "run"))
    assert "2–5" in page.text
    assert "≥ 5" in page.text
    assert "61.7 %" in page.text  # 1234 of 2000 pixels
    bars = [
        t for t in re.findall(r"<title>(.*?)</title>", page.source) if t.startswith(("0–2", "2–5", "≥ 5"))
    ]
    assert "0–2: 0.0713" in bars
    assert "≥ 5: −0.4560" in bars
    assert not [t for t in bars if t.startswith("2–5") and not t.endswith("0 %")]


def test_depth_ranges_that_were_not_asked_for(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "by_depth.csv").write_text("from,to,pixels,abs_rel,rmse,d1,bias\n")
    page = Page(run)
    assert "the protocol names no depth ranges" in page.text
    assert "depth" not in page.values("id")


def test_nonfinite_predictions_are_said_loudly(tmp_path):
    assert "alert" not in Page(make_run(tmp_path / "calm")).values("role")
    rows = [row(0, "good", 0.1), row(1, "broken", 0.2, nonfinite_pixels=1234), row(2, "empty", 0.3, pixels=0)]
    page = Page(make_run(tmp_path / "run", rows=rows, complete=False))
    assert "alert" in page.values("role")
    assert "The model predicted NaN or infinity. 1 image and 1,234 pixels are not finite" in page.text
    assert "1 image without a scored pixel" in page.text
    assert "A part of the split only. 3 images were evaluated, the full split has 654" in page.text
    assert "1 without a finite value" in page.text
    assert "2 images and" not in page.text
    assert "NaN" in page.texts  # a cell of the table


def test_a_mean_that_does_not_exist(tmp_path):
    run = make_run(tmp_path / "run")
    edit(run, metrics={**scores(0.7 / 3), "rmse": None})
    assert "Not a number: RMSE." in Page(run).text


def test_tables_of_two_evaluations_are_said(tmp_path):
    assert "not of one evaluation" in Page(make_run(tmp_path / "run", metrics=scores(0.3))).text


def test_baselines_that_were_not_run(tmp_path):
    baselines = {"median_depth_map": {"not_run": "the images differ in size"}}
    page = Page(make_run(tmp_path / "run", baselines=baselines))
    assert "Median depth map: not run: the images differ in size." in page.text
    assert "not a number" not in page.text
    assert page.text.count("median depth map") == 0  # neither a column nor a claim


def test_predictions_from_files(tmp_path):
    run = make_run(tmp_path / "run", predictions="12 npy")
    document = edit(run, input_sizes="not applicable")
    edit(run, protocol={**document["protocol"], "flip": "not applicable"})
    text = Page(run).text
    assert "Flip averaging not applicable" in text
    assert "Predictions 12 npy" in text


def test_pictures_that_cannot_be_shown(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "pictures/best_1.png").unlink()
    (run / "pictures/spread_1.png").write_bytes(b"no picture")
    page = Page(run)
    assert page.tags.count("img") == 1
    for words in (
        "best_1.png is named in metrics.json but is not there",
        "spread_1.png is not a readable picture",
    ):
        assert words in page.text


def test_worst_images_come_first(tmp_path):
    rows = [row(i, f"id{i}", value) for i, value in enumerate((0.2, 0.9, 0.1))]
    rows.append(row(3, "id3", math.nan, pixels=0))
    page = Page(make_run(tmp_path / "run", rows=rows, pictures=False))
    table = page.source[page.source.index('id="images"') :]
    assert re.findall(r">(id\d)<", table) == ["id1", "id0", "id2", "id3"]


def test_a_comparison_in_words(tmp_path):
    theirs = make_run(tmp_path / "b", (0.2, 0.1, 0.7, 0.5))
    page = Page(make_run(tmp_path / "a", (0.1, 0.2, 0.4, 0.5)), [theirs])
    assert "On 4 images of both, AbsRel is 0.3000 here and 0.3750 there" in page.text
    assert "better on 50.0 % of them and worse on 25.0 %" in page.text
    assert "−0.07500" in page.text
    assert "Not compared" not in page.text
    assert any(title.startswith("0.0853912") for title in page.values("title"))  # the standard error, exact
    assert page.text.count("place/00003") == 1  # unchanged: in the table of images only


def test_images_that_were_not_compared_are_counted(tmp_path):
    empty, b, c, d = (row(i, name, 0.1, 5 * (i > 0)) for i, name in enumerate("abcd"))
    theirs = make_run(tmp_path / "b", rows=[empty, {**d, "index": 1}, {**c, "id": "new"}])
    page = Page(make_run(tmp_path / "a", rows=[empty, b, c, d]), [theirs])
    assert "2 only in this run, 1 only in the other, 1 without a score" in page.text
