import base64
import csv
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sa2depth.errors import ConfigError, DataError
from sa2depth.report import charts
from sa2depth.report.circumstances import circumstances
from sa2depth.report.embed import data_uri
from sa2depth.report.metric_facts import facts_of, headline_names, metric_order, number_text
from sa2depth.report.page import write_page
from sa2depth.report.paired import compare
from sa2depth.report.run_files import read_run

NAMES = ["silog", "abs_rel", "log10", "rmse", "sq_rel", "log_rmse", "d1", "d2", "d3"]
DEPTHS = [
    {"from": 0.0, "to": 2.0, "pixels": 1234, "abs_rel": 0.0713, "rmse": 0.111, "d1": 0.97, "bias": 0.0123},
    {"from": 2.0, "to": 5.0, "pixels": 0, "abs_rel": None, "rmse": None, "d1": None, "bias": None},
    {"from": 5.0, "to": None, "pixels": 766, "abs_rel": 0.1517, "rmse": 0.917, "d1": 0.83, "bias": -0.456},
]
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """What is on a page; fails on tags that are not closed in order."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def values(self, name):
        return [value for _, n, value in self.attributes if n == name]


def scores(value):
    return {name: (1 - value / 3 if name in ("d1", "d2", "d3") else value) for name in NAMES}


def mean_of(rows):
    scored = [row for row in rows if row["pixels"]]
    return {name: math.fsum(row[name] for row in scored) / len(scored) for name in NAMES}


def make_run(folder, values=(0.1, 0.2, 0.4), ids=None, pictures=True, by_depth=True, rows=None, **changes):
    """A run's folder with one image for each value; ``changes`` are entries of metrics.json."""
    folder.mkdir(parents=True)
    rows = rows or [
        {"index": i, "id": f"place/{i:05d}", **scores(value), "pixels": 1000 + i, "nonfinite_pixels": 0}
        for i, value in enumerate(values)
    ]
    for row, name in zip(rows, ids or [], strict=False):
        row["id"] = name
    empty = [row["id"] for row in rows if not row["pixels"]]
    broken = [row for row in rows if row["nonfinite_pixels"]]
    document = {
        "metrics": mean_of(rows),
        "baselines": {"median_depth_map": {**scores(0.8765), "images": len(rows), "empty_images": 0}},
        "images": len(rows) - len(empty),
        "evaluated_images": len(rows),
        "images_without_truth": 0,
        "empty_images": len(empty),
        "empty_ids": empty,
        "nonfinite_images": len(broken),
        "nonfinite_pixels": sum(row["nonfinite_pixels"] for row in broken),
        "nonfinite_ids": [row["id"] for row in broken],
        "complete": True,
        "protocol": {
            "name": "nyu_eigen",
            "version": 3,
            "min_depth": 0.001,
            "max_depth": 10.0,
            "crop": "nyu_eigen",
            "crop_box": {"top": 45, "bottom": 471, "left": 41, "right": 601},
            "frame": {"height": 480, "width": 640},
            "input": "as_is",
            "input_size": None,
            "flip": True,
            "clip_both_at": None,
            "expected_images": 654,
            "metrics": NAMES,
            "depth_ranges": [0.0, 2.0, 5.0],
            "description": "NYU's test images.",
        },
        "device": "CPU, precision 32-true",
        "checkpoint": "runs/best.ckpt",
        "seed": 1723,
        "fit_s": 123.456789,
        "sa2depth_version": "0.1.0",
        **changes,
    }
    if by_depth:
        document["by_depth"] = DEPTHS
        with (folder / "by_depth.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(DEPTHS[0]))
            writer.writeheader()
            writer.writerows([{**row, "to": row["to"] or "inf"} for row in DEPTHS])
    if pictures:
        (folder / "pictures").mkdir()
        document["pictures"] = []
        for kind, row in zip(("worst", "best", "spread"), rows, strict=False):
            save_noise(folder / f"pictures/{kind}_1.png", 16, 64)
            document["pictures"].append({"kind": kind, "id": row["id"], "file": f"pictures/{kind}_1.png"})
    with (folder / "per_image.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "metrics.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def save_noise(path, height, width):
    noise = np.random.RandomState(0).randint(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)


def numbers(value):
    """Every number of a JSON document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def test_one_file_that_asks_for_nothing(tmp_path):
    path = write_page(make_run(tmp_path / "runs" / "one"))
    assert path == tmp_path / "runs" / "one" / "report.html"
    page = Page(path)
    addresses = page.values("src") + page.values("href")
    assert {a.split(":")[0] if ":" in a else "" for a in addresses} == {"data", ""}
    assert not re.search(r"https?:|url\(|@import", page.source)
    assert {a for a in addresses if not a.startswith(("data:", "#"))} == {
        "metrics.json", "per_image.csv", "by_depth.csv",
    }  # fmt: skip
    assert sum(a.startswith("data:image/png;base64,") for a in addresses) == 3
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    targets = set(page.values("id"))
    assert {a[1:] for a in addresses if a.startswith("#")} <= targets
    assert not list(path.parent.glob(".report*"))


def test_the_policy_allows_this_script_and_no_other(tmp_path):
    page = Page(write_page(make_run(tmp_path / "run")))
    policy = next(v for v in page.values("content") if v.startswith("default-src 'none'"))
    script = re.search(r"<script>(.*?)</script>", page.source, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.tags.count("script") == 1


def test_every_number_is_there(tmp_path):
    run = make_run(tmp_path / "run", (0.12345678, 0.2, 0.7))
    page = Page(write_page(run))
    document = json.loads((run / "metrics.json").read_text())
    words = " ".join([*page.values("title"), page.text])
    shown = set(re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", words))
    box = document["protocol"].pop("crop_box")
    assert f"rows {box['top']}–{box['bottom'] - 1}, columns {box['left']}–{box['right'] - 1}" in page.text
    for number in numbers(document):
        assert {repr(number), f"{number:,}" if isinstance(number, int) else ""} & shown, number
    for words in ("nyu_eigen v3", "NYU's test images.", "CPU, precision 32-true", "as_is", "runs/best.ckpt"):
        assert words in page.text
    assert "480 × 640 px" in page.text
    for value in ("median depth map", "0.1235", "−0.4560"):
        assert value in page.text


def test_by_depth(tmp_path):
    page = Page(write_page(make_run(tmp_path / "run")))
    assert "2–5" in page.text
    assert "≥ 5" in page.text
    assert "61.7 %" in page.text  # 1234 of 2000 pixels
    bars = [
        t for t in re.findall(r"<title>(.*?)</title>", page.source) if t.startswith(("0–2", "2–5", "≥ 5"))
    ]
    assert "0–2: 0.0713" in bars
    assert "≥ 5: −0.4560" in bars
    assert not [t for t in bars if t.startswith("2–5") and not t.endswith("0 %")]


def test_everything_is_escaped(tmp_path):
    nasty = '<script>alert("1")</script>&amp;\''
    folder = tmp_path / "<b>&" / '"run"'
    run = make_run(folder, ids=[nasty] * 1, checkpoint=f"{nasty}.ckpt", baselines={nasty: scores(0.5)})
    document = json.loads((run / "metrics.json").read_text())
    document["protocol"].update(description=nasty, name=nasty)
    document.update(nasty={nasty: nasty}, nonfinite_images=1, nonfinite_pixels=3, nonfinite_ids=[nasty])
    document["pictures"][0]["kind"] = nasty
    (run / "metrics.json").write_text(json.dumps(document))
    other = make_run(tmp_path / "<i>" / "x", (0.2, 0.1, 0.3), ids=[nasty])
    changed = json.loads((other / "metrics.json").read_text())
    changed["protocol"] = document["protocol"]
    (other / "metrics.json").write_text(json.dumps(changed))
    page = Page(write_page(run, others=[other]))
    assert page.tags.count("script") == 1
    assert not {"b", "i"} & {tag for tag in page.tags if page.tags.count(tag) != 3}  # three captions are bold
    assert page.text.count(nasty) >= 6
    assert '<b>&/"run"' in page.text


def test_nonfinite_predictions_are_said_loudly(tmp_path):
    calm = Page(write_page(make_run(tmp_path / "calm")))
    assert "alert" not in calm.values("role")
    rows = [
        {"index": 0, "id": "good", **scores(0.1), "pixels": 10, "nonfinite_pixels": 0},
        {"index": 1, "id": "broken", **scores(0.2), "pixels": 10, "nonfinite_pixels": 1234},
        {"index": 2, "id": "empty", **dict.fromkeys(NAMES, math.nan), "pixels": 0, "nonfinite_pixels": 0},
    ]
    page = Page(write_page(make_run(tmp_path / "run", rows=rows, complete=False)))
    assert "alert" in page.values("role")
    assert "The model predicted NaN or infinity. 1 image and 1,234 pixels are not finite" in page.text
    assert "1 image without a scored pixel" in page.text
    assert "A part of the split only. 3 images were evaluated, the full split has 654" in page.text
    assert "1 without a finite value" in page.text
    assert "2 images and" not in page.text
    assert "NaN" in page.texts  # a cell of the table


def test_a_mean_that_does_not_exist(tmp_path):
    run = make_run(tmp_path / "run")
    document = json.loads((run / "metrics.json").read_text())
    document["metrics"]["rmse"] = None
    (run / "metrics.json").write_text(json.dumps(document))
    page = Page(write_page(run))
    assert "Not a number: RMSE." in page.text


def test_runs_of_older_versions(tmp_path):
    run = make_run(tmp_path / "run", pictures=False, by_depth=False)
    page = Page(write_page(run))
    assert "There is no by_depth.csv" in page.text
    assert "No pictures of the worst and best images" in page.text
    assert "depth" not in page.values("id")
    assert "img" not in page.tags
    save_noise(run / "grid.png", 20, 30)
    save_noise(run / "curves.png", 20, 30)
    (run / "per_image.csv").unlink()
    page = Page(write_page(run))
    assert page.tags.count("img") == 2
    assert "There is no per_image.csv" in page.text
    assert not {"every", "distribution"} & set(page.values("id"))
    assert "script" not in page.tags
    # by_depth of metrics.json serves where the table is missing
    document = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**document, "by_depth": DEPTHS}))
    assert read_run(run).by_depth[2]["to"] == math.inf
    assert "≥ 5" in Page(write_page(run)).text


def test_the_least_there_can_be(tmp_path):
    (tmp_path / "metrics.json").write_text('{"metrics": {"abs_rel": 0.25, "novel": 7.0}, "protocol": {}}')
    page = Page(write_page(tmp_path, tmp_path / "new" / "page.html"))
    assert "0.2500" in page.text
    assert "novel" in page.text
    assert "../metrics.json" in page.values("href")


def test_no_run(tmp_path):
    with pytest.raises(DataError, match=r"absent is no folder: name the folder of a finished evaluation"):
        read_run(tmp_path / "absent")
    make_run(tmp_path / "runs" / "a")
    with pytest.raises(DataError, match=r"holds no metrics.json: did you mean .*runs/a\?"):
        read_run(tmp_path / "runs")
    assert read_run(tmp_path / "runs" / "a" / "metrics.json").title == "runs/a"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.json", "{", "not readable JSON"),
        ("metrics.json", "[]", "mapping 'metrics'"),
        ("metrics.json", '{"metrics": {"abs_rel": 1}}', "mapping 'protocol'"),
        ("metrics.json", '{"metrics": {}, "protocol": {}}', "is empty"),
        ("per_image.csv", "index,id,abs_rel,pixels\n0,a,0.1\n", "line 2: expected 4 cells"),
        ("per_image.csv", "index,id,abs_rel\n0,a,0.1,5\n", "line 2: expected 3 cells"),
        (
            "per_image.csv",
            "index,id,abs_rel\n0,a,0.1\n1,b,bad\n",
            "line 3: abs_rel must be a number, found 'bad'",
        ),
        ("per_image.csv", "index,id,abs_rel\nnan,a,0.1\n", "line 2: index must be a whole number"),
        ("per_image.csv", "", "expected a column 'id', found no header"),
        ("by_depth.csv", "from,to,pixels,abs_rel,rmse,d1,bias\n0,1,x,1,1,1,1\n", "pixels must be a number"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, file, text, message):
    run = make_run(tmp_path / "run")
    (run / file).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        write_page(run)
    assert file in str(error.value)
    assert not (run / "report.html").exists()


def test_tables_of_two_evaluations_are_noticed(tmp_path):
    run = make_run(tmp_path / "fewer", evaluated_images=654)
    assert any("counts 654 images, per_image.csv has 3" in gap for gap in read_run(run).gaps)
    run = make_run(tmp_path / "other", metrics=scores(0.3))
    assert any("The mean silog of per_image.csv is 0.233333" in gap for gap in read_run(run).gaps)
    assert "not of one evaluation" in Page(write_page(run)).text
    assert not read_run(make_run(tmp_path / "good")).gaps


def test_pictures_that_are_not_there_or_not_ours(tmp_path):
    save_noise(tmp_path / "secret.png", 8, 8)
    run = make_run(tmp_path / "run")
    (run / "pictures/best_1.png").unlink()
    (run / "pictures/spread_1.png").write_bytes(b"no picture")
    document = json.loads((run / "metrics.json").read_text())
    document["pictures"] += [{"kind": "worst", "id": "x", "file": "../secret.png"}, "nonsense"]
    (run / "metrics.json").write_text(json.dumps(document))
    page = Page(write_page(run))
    assert page.tags.count("img") == 1
    for words in ("best_1.png is named in metrics.json but is not there", "../secret.png lies outside",
                  "spread_1.png is not a readable picture"):  # fmt: skip
        assert words in page.text


def test_comparison(tmp_path):
    mine = make_run(tmp_path / "a", (0.1, 0.2, 0.4, 0.5))
    theirs = make_run(tmp_path / "b", (0.2, 0.1, 0.7, 0.5))
    result = compare(read_run(mine), read_run(theirs))
    by_name = {metric.name: metric for metric in result.metrics}
    rel = by_name["abs_rel"]
    assert list(by_name) == NAMES
    assert rel.mean == pytest.approx(0.3)
    assert rel.other_mean == pytest.approx(0.375)
    assert rel.difference == pytest.approx(-0.075)
    differences = np.array([-0.1, 0.1, -0.3, 0.0])
    assert rel.standard_error == pytest.approx(np.std(differences, ddof=1) / 2)
    assert (rel.better, rel.equal, rel.worse) == (0.5, 0.25, 0.25)
    # shares of pixels within a threshold are better where they are higher
    assert by_name["d1"].difference == pytest.approx(0.025)
    assert (by_name["d1"].better, by_name["d1"].worse) == (0.5, 0.25)
    assert [change[0] for change in result.changes] == [
        "place/00002",
        "place/00000",
        "place/00003",
        "place/00001",
    ]
    page = Page(write_page(mine, others=[theirs]))
    text = page.text
    assert "On 4 images of both, AbsRel is 0.3000 here and 0.3750 there" in text
    assert "better on 50.0 % of them and worse on 25.0 %" in text
    assert "−0.07500" in text
    assert "Not compared" not in text
    assert repr(rel.standard_error) in page.values("title")
    assert text.count("place/00003") == 1  # unchanged: in the table of images only


def test_comparison_of_different_images(tmp_path):
    rows = [
        {"index": i, "id": name, **scores(0.1), "pixels": 5, "nonfinite_pixels": 0}
        for i, name in enumerate("abcd")
    ]
    rows[0].update(dict.fromkeys(NAMES, math.nan), pixels=0)
    mine = make_run(tmp_path / "a", rows=rows)
    theirs = make_run(tmp_path / "b", rows=[dict(rows[0]), dict(rows[3], index=1), dict(rows[2], id="new")])
    result = compare(read_run(mine), read_run(theirs))
    assert (result.only_here, result.only_there, result.unscored) == (2, 1, 1)
    assert [metric.standard_error for metric in result.metrics] == pytest.approx([math.nan] * 9, nan_ok=True)
    assert (
        "2 only in this run, 1 only in the other, 1 without a score"
        in Page(write_page(mine, others=[theirs])).text
    )


def test_comparisons_that_mean_nothing_are_refused(tmp_path):
    mine = read_run(make_run(tmp_path / "a"))
    rules = dict(mine.protocol)

    def other(name, **changes):
        return read_run(make_run(tmp_path / name, **changes))

    with pytest.raises(ConfigError, match=r"by nyu_eigen v3, .* by nyu_eigen v4: scores of two protocols"):
        compare(mine, other("v", protocol={**rules, "version": 4}))
    with pytest.raises(ConfigError, match="by nyu_none v3"):
        compare(mine, other("n", protocol={**rules, "name": "nyu_none"}))
    with pytest.raises(ConfigError, match="but with another crop_box, max_depth"):
        compare(mine, other("m", protocol={**rules, "max_depth": 8.0, "crop_box": {"top": 0}}))
    with pytest.raises(DataError, match="share no image"):
        compare(mine, other("i", ids=["x", "y", "z"]))
    with pytest.raises(DataError, match="'x' is not unique"):
        compare(mine, other("u", ids=["x", "x"]))
    rows = [{"index": 0, "id": "place/00000", **scores(0.1), "pixels": 999, "nonfinite_pixels": 0}]
    with pytest.raises(DataError, match=r"different pixels of 1 of 1 images \('place/00000': 1000 and 999\)"):
        compare(mine, other("p", rows=rows))
    (tmp_path / "i" / "per_image.csv").unlink()
    with pytest.raises(DataError, match="needs them of both runs"):
        compare(mine, read_run(tmp_path / "i"))
    # older runs lack rules that newer ones write, and a description is no rule
    assert compare(
        mine, other("o", protocol={**{k: rules[k] for k in ("name", "version")}, "description": "-"})
    )


def test_the_largest_split_stays_small(tmp_path):
    values = np.random.RandomState(0).gamma(4, 0.03, 5050)
    run = make_run(
        tmp_path / "run", values, ids=[f"kv2/kinect2data/{i:06d}_2014-05-26_14-23-37" for i in range(5050)]
    )
    for kind in ("worst", "best", "spread"):
        for place in range(1, 3):
            save_noise(run / f"pictures/{kind}_{place}.png", 300, 3000)  # noise: 2.7 MB each
    document = json.loads((run / "metrics.json").read_text())
    document["pictures"] = [
        {"kind": kind, "id": "x", "file": f"pictures/{kind}_{place}.png"}
        for kind in ("worst", "best", "spread")
        for place in (1, 2)
    ]
    (run / "metrics.json").write_text(json.dumps(document))
    path = write_page(run)
    assert path.stat().st_size < 15e6
    page = Page(path)
    assert page.tags.count("img") == 6
    assert page.tags.count("tr") > 5050
    assert page.text.count("kv2/kinect2data/") >= 5050


def test_worst_images_come_first(tmp_path):
    rows = [
        {"index": i, "id": f"id{i}", **scores(value), "pixels": 9, "nonfinite_pixels": 0}
        for i, value in enumerate((0.2, 0.9, 0.1))
    ]
    rows.append(
        {"index": 3, "id": "id3", **dict.fromkeys(NAMES, math.nan), "pixels": 0, "nonfinite_pixels": 0}
    )
    page = Page(write_page(make_run(tmp_path / "run", rows=rows, pictures=False)))
    table = page.source[page.source.index('id="images"') :]
    assert re.findall(r">(id\d)<", table) == ["id1", "id0", "id2", "id3"]


def test_kittis_own_metrics_lead_where_they_are_reported():
    wanted = ["silog", "sq_error_rel", "abs_error_rel", "irmse", "abs_rel"]
    names = metric_order(sorted(wanted), wanted)
    assert list(names) == wanted
    assert headline_names(names) == ("silog", "sq_error_rel", "abs_error_rel", "irmse")
    assert headline_names(tuple(NAMES)) == ("abs_rel", "rmse", "d1")
    assert metric_order(["zeta", "d1", "abs_rel"]) == ("abs_rel", "d1", "zeta")
    assert facts_of("irmse").unit == "1/km"
    assert facts_of("zeta").favours(1.0, 2.0) == 0
    assert facts_of("d1").favours(0.9, 0.8) == 1
    assert facts_of("rmse").favours(0.9, 0.8) == -1


def test_numbers_for_people():
    assert number_text(0.05123) == "0.0512"
    assert number_text(-0.5, 2) == "−0.50"
    assert number_text(0.00000123) == "1.2e−06"
    assert number_text(0.0) == "0.0000"
    assert number_text(None) == number_text(math.nan) == "not a number"
    assert number_text(math.inf) == "infinite"


def test_baselines_that_were_not_run(tmp_path):
    baselines = {"median_depth_map": {"not_run": "the images differ in size"}}
    page = Page(write_page(make_run(tmp_path / "run", baselines=baselines)))
    assert "Median depth map: not run: the images differ in size." in page.text
    assert "not a number" not in page.text
    assert page.text.count("median depth map") == 0  # neither a column nor a claim


def test_depth_ranges_that_were_not_asked_for(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "by_depth.csv").write_text("from,to,pixels,abs_rel,rmse,d1,bias\n")
    page = Page(write_page(run))
    assert "the protocol names no depth ranges" in page.text
    assert "depth" not in page.values("id")


def test_predictions_from_files_compare_with_a_network(tmp_path):
    mine = read_run(make_run(tmp_path / "a"))
    rules = {**mine.protocol, "flip": "not applicable", "input": "not applicable"}
    theirs = make_run(tmp_path / "b", protocol=rules, input_sizes="not applicable", predictions="12 npy")
    assert compare(mine, read_run(theirs)).metrics[0].equal == 1.0
    text = Page(write_page(theirs)).text
    assert "Flip averaging not applicable" in text
    assert "Predictions 12 npy" in text


def test_many_sizes():
    box = {"top": 45, "bottom": 427, "left": 41, "right": 561}
    sizes = {f"{427 + i}x561": {"images": 9 - i, "crop_box": box} for i in range(8)}
    document = {
        "protocol": {"frame": None, "crop_box": None, "frame_cut": [352, 1216]},
        "native_sizes": {"530x730": 5050},
        "frames": sizes,
        "split_images": 5050,
    }
    groups = {title: {f.label: f.text for f in facts} for title, facts in circumstances(document)}
    assert groups["Protocol"] == {"Cut to": "352 × 1216 px"}
    assert groups["Images"]["Sizes of the files"] == "530 × 730: 5050 images"
    words = groups["Images"]["Sizes scored"]
    assert words.startswith("427 × 561: 9 images, rows 45–426, columns 41–560 (382 × 520 px); 428")
    assert words.endswith("and 2 more sizes")
    assert "Run" not in groups


def test_circumstances_in_words():
    document = {
        "protocol": {
            "frame": [352, 1216], "input": "resize", "input_size": [480, 640], "max_side": None,
            "novel_rule": {"deep": 1.5}, "clip_both_at": 8.0, "flip": False,
        },
        "lr": 0.0001, "ids": list(range(50)), "metrics": {"abs_rel": 1},
    }  # fmt: skip
    groups = {title: {f.label: f.text for f in facts} for title, facts in circumstances(document)}
    assert groups["Protocol"] == {
        "Frame": "352 × 1216 px", "Input size": "480 × 640 px", "Network's input": "resize",
        "Both clipped at": "8 m", "Flip averaging": "no", "Novel rule: deep": "1.5",
    }  # fmt: skip
    assert groups["Run"]["Lr"] == "0.0001"
    assert groups["Run"]["Ids"].endswith("29 and 20 more")
    assert "Images" not in groups


def counts_of(svg):
    return [int(count) for count in re.findall(r"<title>[^<]*?(\d+) images?[^<]*</title>", svg)]


def test_histograms_count_every_finite_image():
    values = [*np.random.RandomState(0).normal(0.1, 0.02, 500), 5.0, 7.0, math.nan, math.inf]
    chart = charts.histogram(values, "AbsRel")
    assert sum(counts_of(chart)) == 502
    # the far ones are gathered, not given the whole axis
    beyond = re.search(r"<title>(\d+) images above (\S+)</title>", chart)
    assert 2 <= int(beyond.group(1)) <= 8
    assert float(beyond.group(2)) < 0.2
    assert "502 images" in chart
    mirrored = charts.histogram([-value for value in values], "x")
    assert re.search(r"<title>(\d+) images below −(\S+)</title>", mirrored).group(1) == beyond.group(1)
    assert sum(counts_of(mirrored)) == 502
    assert charts.histogram([math.nan], "x") == ""
    ticks = re.findall(r'text-anchor="end">([^<]*)<', charts.histogram([0.1, 0.2, 0.4], "x"))
    assert ticks == ["0", "1"]  # images come whole
    for few in ([0.1], [0.1] * 9, [0.1, 0.2], [0.0, 0.0]):
        assert sum(counts_of(charts.histogram(few, "x"))) == len(few)
    assert "&lt;b&gt;" in charts.histogram([1.0, 2.0], "<b>")


def test_differences_are_parted_at_zero():
    values = np.random.RandomState(0).normal(0.01, 0.05, 400)
    chart = charts.histogram(values, "x", lambda middle: "worse" if middle > 0 else "better")
    parts = re.findall(r'class="bar (better|worse|beyond)"[^>]*><title>[^<]*?(\d+) images?', chart)
    assert sum(int(count) for kind, count in parts if kind == "better") == (values < 0).sum()
    assert sum(int(count) for kind, count in parts if kind == "worse") == (values > 0).sum()


def test_cumulative_curves():
    chart = charts.cumulative([("one", [0.0, 1.0]), ("two", [1.0, 1.0, math.nan])], "x")
    first, second = (
        [tuple(map(float, pair.split(","))) for pair in points.split()]
        for points in re.findall(r'points="([^"]*)"', chart)
    )
    low, high = second[0][1], first[-1][1]
    assert first[0][1] == pytest.approx((low + high) / 2)  # half of the images have 0
    assert second[-1][1] == high
    assert charts.cumulative([("none", [math.nan])], "x") == ""


def test_columns():
    chart = charts.columns(["a", "b", "c"], [1.0, math.nan, -2.0], "x", lambda v: f"{v:g}")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', chart)]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)
    assert "<title>b" not in chart
    assert charts.columns(["a"], [math.nan], "x", str) == ""
    assert charts.columns(["a"], [0.0], "x", str)


def test_large_pictures_are_made_smaller(tmp_path):
    save_noise(tmp_path / "a.png", 100, 1000)
    assert data_uri(tmp_path / "a.png", 1_000_000).startswith("data:image/png;base64,")
    small = data_uri(tmp_path / "a.png", 30_000)
    assert small.startswith("data:image/webp;base64,")
    assert len(small) < 41_000
    Image.new("L", (9, 9)).save(tmp_path / "b.bmp")
    assert data_uri(tmp_path / "b.bmp", 1_000_000).startswith("data:image/webp;base64,")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut.png is not a readable picture"):
        data_uri(tmp_path / "cut.png", 1_000_000)
