import base64
import hashlib
import json
import os
import re

import numpy as np
import pytest

from made_run import NAMES, PROTOCOL, Page, edit, make_run, save_noise, scores
from sa2depth.errors import DataError
from sa2depth.report.page import refresh_page, write_page


def numbers(value):
    """Every number in a JSON document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def test_one_file_that_asks_for_nothing(tmp_path):
    page = Page(make_run(tmp_path / "runs" / "one"))
    assert page.path == tmp_path / "runs" / "one" / "report.html"
    addresses = page.values("src") + page.values("href")
    assert {a.split(":")[0] if ":" in a else "" for a in addresses} == {"data", ""}
    assert not re.search(r"https?:|url\(|@import", page.source)
    assert {a for a in addresses if not a.startswith(("data:", "#"))} == {
        "metrics.json", "per_image.csv", "by_depth.csv",
    }  # fmt: skip
    assert sum(a.startswith("data:image/png;base64,") for a in addresses) == 3
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    targets = page.values("id")
    assert len(set(targets)) == len(targets)
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(targets)
    assert not list(page.path.parent.glob(".report*"))


def test_the_policy_allows_this_script_and_no_other(tmp_path):
    page = Page(make_run(tmp_path / "run"))
    policy = next(v for v in page.values("content") if v.startswith("default-src 'none'"))
    script = re.search(r"<script>(.*?)</script>", page.source, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.tags.count("script") == 1


def test_every_number_is_there(tmp_path):
    run = make_run(tmp_path / "run", (0.12345678, 0.2, 0.7))
    page, document = Page(run), json.loads((run / "metrics.json").read_text())
    words = " ".join([*page.values("title"), page.text])
    shown = set(re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", words))
    box = document["protocol"].pop("crop_box")
    assert f"rows {box['top']}–{box['bottom'] - 1}, columns {box['left']}–{box['right'] - 1}" in page.text
    for number in numbers(document):
        assert {repr(number), f"{number:,}" if isinstance(number, int) else ""} & shown, number
    for words in ("nyu_eigen v3", "NYU's test images.", "CPU, precision 32-true", "as_is", "runs/best.ckpt",
                  "480 × 640 px", "median depth map", "0.1235", "−0.4560"):  # fmt: skip
        assert words in page.text


def test_charts_have_the_colours_of_the_page_in_light_and_dark(tmp_path):
    other = make_run(tmp_path / "b", (0.3, 0.1, 0.2))
    page = Page(make_run(tmp_path / "a"), [other])
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    light, dark = (
        set(re.findall(r"--([\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert Page(tmp_path / "a", [other]).source == page.source  # the same run gives the same bytes
    used = set(re.findall(r"var\(--([\w-]+)\)", page.source)) - {"id"}
    assert {"accent", "good", "bad", "mean", "s0", "s1", "grid"} <= used <= light
    assert light - dark <= {"s0"}  # which is one of the others


def test_everything_is_escaped(tmp_path):
    nasty = '<script>alert("1")</script>&amp;\''
    protocol = {**PROTOCOL, "description": nasty, "name": nasty}
    run = make_run(
        tmp_path / "<b>&" / '"run"', ids=[nasty], checkpoint=f"{nasty}.ckpt", baselines={nasty: scores(0.5)},
        protocol=protocol, nasty={nasty: nasty}, nonfinite_images=1, nonfinite_pixels=3, nonfinite_ids=[nasty],
    )  # fmt: skip
    pictures = json.loads((run / "metrics.json").read_text())["pictures"]
    edit(run, pictures=[{**pictures[0], "kind": nasty}, *pictures[1:]])
    page = Page(run, [make_run(tmp_path / "<i>" / "x", (0.2, 0.1, 0.3), ids=[nasty], protocol=protocol)])
    assert page.tags.count("script") == 1
    assert page.tags.count("b") == 3  # three captions are bold
    assert "i" not in page.tags
    assert page.text.count(nasty) >= 6
    assert '<b>&/"run"' in page.text


def test_runs_of_older_versions(tmp_path):
    run = make_run(tmp_path / "run", pictures=False, by_depth=False)
    page = Page(run)
    assert "There is no by_depth.csv" in page.text
    assert "No pictures of the worst and best images" in page.text
    assert "depth" not in page.values("id")
    assert "img" not in page.tags
    save_noise(run / "grid.png", 20, 30)
    save_noise(run / "curves.png", 20, 30)
    (run / "per_image.csv").unlink()
    page = Page(run)
    assert page.tags.count("img") == 2
    assert "There is no per_image.csv" in page.text
    assert not {"every", "distribution"} & set(page.values("id"))
    assert "script" not in page.tags


def test_the_least_there_can_be(tmp_path):
    (tmp_path / "metrics.json").write_text('{"metrics": {"abs_rel": 0.25, "novel": 7.0}, "protocol": {}}')
    text = write_page(tmp_path, tmp_path / "new" / "page.html").read_text()
    for words in ("0.2500", "novel", 'href="../metrics.json"'):
        assert words in text


def test_what_cannot_be_read_leaves_no_page(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "per_image.csv").write_text("")
    with pytest.raises(DataError):
        write_page(run)
    assert not (run / "report.html").exists()


def test_the_largest_split_stays_small(tmp_path):
    values = np.random.RandomState(0).gamma(4, 0.03, 5050)
    run = make_run(
        tmp_path / "run", values, ids=[f"kv2/kinect2data/{i:06d}_2014-05-26_14-23-37" for i in range(5050)]
    )
    listed = []
    for kind in ("worst_1", "worst_2", "best_1", "best_2", "spread_1", "spread_2"):
        save_noise(run / f"pictures/{kind}.png", 300, 3000)  # noise: 2.7 MB each
        listed.append({"kind": kind[:-2], "id": "x", "file": f"pictures/{kind}.png"})
    edit(run, pictures=listed)
    page = Page(run)
    assert page.path.stat().st_size < 15e6
    charts = re.findall(r'<svg class="chart".*?</svg>', page.source)
    assert len(charts) == len(NAMES) + 6
    assert sum(map(len, charts)) < 150_000
    assert page.tags.count("img") == 6
    assert page.tags.count("tr") > 5050
    assert page.text.count("kv2/kinect2data/") >= 5050


def test_a_page_says_which_state_it_shows_and_is_made_again(tmp_path):
    run, other = make_run(tmp_path / "a & b" / "a", steps=1200), make_run(tmp_path / "b")
    assert refresh_page(run) is None
    os.utime(run / "metrics.json", (1000, 1000))
    page = Page(run, [other])
    assert "scored 1970-01-01 00:16 UTC, after 1,200 training steps" in page.text
    assert "With " in page.text
    edit(run, steps=2400)
    assert refresh_page(run) == page.path
    again = page.path.read_text()
    assert "after 2,400 training steps" in again
    assert again.count("<h3>With ") == 1
    # the other run has been scored by another protocol since
    edit(other, protocol={**PROTOCOL, "version": 4})
    assert refresh_page(run) == page.path
    assert "<h3>With " not in page.path.read_text()
