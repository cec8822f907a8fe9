"""Make the folder of an evaluation from a few numbers, as a run would write it, and read its page back."""

import csv
import json
import math
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from sa2depth.report.page import write_page

NAMES = ["silog", "abs_rel", "log10", "rmse", "sq_rel", "log_rmse", "d1", "d2", "d3"]
DEPTHS = [
    {"from": 0.0, "to": 2.0, "pixels": 1234, "abs_rel": 0.0713, "rmse": 0.111, "d1": 0.97, "bias": 0.0123},
    {"from": 2.0, "to": 5.0, "pixels": 0, "abs_rel": None, "rmse": None, "d1": None, "bias": None},
    {"from": 5.0, "to": None, "pixels": 766, "abs_rel": 0.1517, "rmse": 0.917, "d1": 0.83, "bias": -0.456},
]
PROTOCOL = {
    "name": "nyu_eigen", "version": 3, "min_depth": 0.001, "max_depth": 10.0, "clip_both_at": None,
    "crop": "nyu_eigen", "crop_box": {"top": 45, "bottom": 471, "left": 41, "right": 601},
    "frame": {"height": 480, "width": 640}, "input": "as_is", "input_size": None, "flip": True,
    "expected_images": 654, "metrics": NAMES, "depth_ranges": [0.0, 2.0, 5.0], "description": "NYU's test images.",
}  # fmt: skip
_VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """The contents of a run's page; fails on tags that are not closed in order."""

    def __init__(self, run, others=()):
        super().__init__(convert_charrefs=True)
        self.path = write_page(run, others=others)
        self.source = self.path.read_text(encoding="utf-8")
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
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


def row(index, name, value, pixels=10, nonfinite_pixels=0):
    """A row of per_image.csv."""
    values = scores(value if pixels else math.nan)
    return {"index": index, "id": name, **values, "pixels": pixels, "nonfinite_pixels": nonfinite_pixels}


def make_run(folder, values=(0.1, 0.2, 0.4), ids=(), pictures=True, by_depth=True, rows=None, **changes):
    """A run's folder with one image for each value; ``changes`` are entries of metrics.json."""
    folder.mkdir(parents=True)
    rows = rows or [row(i, f"place/{i:05d}", value, 1000 + i) for i, value in enumerate(values)]
    for entry, name in zip(rows, ids, strict=False):
        entry["id"] = name
    empty = [entry["id"] for entry in rows if not entry["pixels"]]
    broken = [entry for entry in rows if entry["nonfinite_pixels"]]
    scored = [entry for entry in rows if entry["pixels"]]
    document = {
        "metrics": {name: math.fsum(entry[name] for entry in scored) / len(scored) for name in NAMES},
        "baselines": {"median_depth_map": {**scores(0.8765), "images": len(rows), "empty_images": 0}},
        "images": len(scored), "evaluated_images": len(rows), "images_without_truth": 0, "complete": True,
        "empty_images": len(empty), "empty_ids": empty,
        "nonfinite_images": len(broken), "nonfinite_ids": [entry["id"] for entry in broken],
        "nonfinite_pixels": sum(entry["nonfinite_pixels"] for entry in broken),
        "protocol": PROTOCOL, "device": "CPU, precision 32-true", "checkpoint": "runs/best.ckpt",
        "seed": 1723, "fit_s": 123.456789, "sa2depth_version": "0.1.0", **changes,
    }  # fmt: skip
    if by_depth:
        document["by_depth"] = DEPTHS
        write_csv(folder / "by_depth.csv", [{**entry, "to": entry["to"] or "inf"} for entry in DEPTHS])
    if pictures:
        (folder / "pictures").mkdir()
        document["pictures"] = []
        for kind, entry in zip(("worst", "best", "spread"), rows, strict=False):
            save_noise(folder / f"pictures/{kind}_1.png", 16, 64)
            document["pictures"].append({"kind": kind, "id": entry["id"], "file": f"pictures/{kind}_1.png"})
    write_csv(folder / "per_image.csv", rows)
    (folder / "metrics.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def edit(run, **changes):
    """Replace entries of a run's metrics.json; returns the document."""
    document = {**json.loads((run / "metrics.json").read_text()), **changes}
    (run / "metrics.json").write_text(json.dumps(document))
    return document


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_noise(path, height, width):
    noise = np.random.RandomState(0).randint(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
