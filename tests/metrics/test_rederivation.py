"""Compare every shipped protocol with a second, independent derivation from the definitions in NumPy.

Nothing of `sa2depth` is used to compute the expected numbers, not even the protocols' files: this file states again
what a protocol means.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sa2depth.metrics import DepthMetrics, evaluate_image, load_protocol
from sa2depth.resources import conf_dir
from views import uncut

NINE = ["silog", "abs_rel", "log10", "rmse", "sq_rel", "log_rmse", "d1", "d2", "d3"]
KITTI_SIZES = [(370, 1224), (374, 1238), (375, 1242), (376, 1241), (352, 1216)]
SUN_SIZES = [(530, 730), (531, 681), (427, 561), (441, 591), (480, 640), (60, 50)]
ANY_SIZES = [(1, 1), (1, 9), (13, 1), (20, 31), (33, 64)]


def whole(height, width):
    return slice(0, height), slice(0, width)


def nyu(height, width):
    return slice(45, 471), slice(41, 601)  # slices end with the frame


def garg(height, width):
    return (
        slice(int(0.40810811 * height), int(0.99189189 * height)),
        slice(int(0.03594771 * width), int(0.96405229 * width)),
    )


def eigen(height, width):
    return (
        slice(int(0.3324324 * height), int(0.91351351 * height)),
        slice(int(0.0359477 * width), int(0.96405229 * width)),
    )


@dataclass
class Rules:
    high: float
    sizes: list
    crop: object = whole
    window: tuple | None = None
    clip: float = math.inf
    low: float = 0.001
    names: tuple = tuple(NINE)
    edges: tuple = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80)


METRES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)
RULES = {
    "nyu_eigen": Rules(10, [(480, 640)], nyu, edges=METRES),
    "nyu_none": Rules(10, [(480, 640), (48, 64)], edges=METRES),
    "kitti_eigen_garg": Rules(80, KITTI_SIZES, garg, (352, 1216)),
    "kitti_eigen_garg_full": Rules(80, KITTI_SIZES, garg),
    "kitti_eigen_eigen": Rules(80, KITTI_SIZES, eigen, (352, 1216)),
    "kitti_official": Rules(
        256,
        [(352, 1216), (35, 121)],
        names=("silog", "sq_error_rel", "abs_error_rel", "irmse", "imae", *NINE[1:]),
        edges=(0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 256),
    ),
    "sun_nyu_8m": Rules(10, SUN_SIZES, nyu, clip=8, edges=METRES),
    "sun_mask_8m": Rules(8, SUN_SIZES, edges=METRES[:-1]),
    "diml_outdoor": Rules(80, [*ANY_SIZES, (108, 192)]),
    "synthetic": Rules(10, ANY_SIZES, edges=METRES),
    "custom": Rules(23, ANY_SIZES, edges=()),
}


def derive(pred, gt, rules):
    """``(row, pairs)``: expected row of an image, and ``(true, scored true, scored prediction)`` of its pixels."""
    height, width = gt.shape
    if rules.window:
        top, left = height - rules.window[0], int((width - rules.window[1]) / 2)
        pred = pred[top:, left : left + rules.window[1]]
        gt = gt[top:, left : left + rules.window[1]]
    bad = np.isnan(pred) | np.isinf(pred)
    rows, columns = rules.crop(*gt.shape)
    inside = np.zeros(gt.shape, bool)
    inside[rows, columns] = True
    counts = inside & np.greater(gt, gt.dtype.type(rules.low)) & np.less(gt, gt.dtype.type(rules.high))
    true, p = gt[counts].astype(np.float64), pred[counts].astype(np.float64)
    p = np.where(np.isnan(p), rules.low, p)
    p = np.minimum(np.maximum(p, rules.low), rules.high)
    p, g = np.minimum(p, rules.clip), np.minimum(true, rules.clip)
    row = {"pixels": len(g), "nonfinite_pixels": np.count_nonzero(bad)}
    if not len(g):
        return {**dict.fromkeys(rules.names, math.nan), **row}, (true, g, p)
    difference = [math.log(a) - math.log(b) for a, b in zip(p, g, strict=True)]
    mean = math.fsum(difference) / len(g)
    worse = np.maximum(p / g, g / p)
    known = {
        "silog": 100 * math.sqrt(math.fsum((d - mean) ** 2 for d in difference) / len(g)),
        "abs_rel": np.average(np.abs(p - g) / g),
        "log10": np.average(np.abs(np.log10(p) - np.log10(g))),
        "rmse": np.sqrt(np.average(np.power(p - g, 2))),
        "sq_rel": np.average(np.power(p - g, 2) / g),
        "log_rmse": math.sqrt(math.fsum(d * d for d in difference) / len(g)),
        "d1": np.count_nonzero(worse < 1.25) / len(g),
        "d2": np.count_nonzero(worse < 1.5625) / len(g),
        "d3": np.count_nonzero(worse < 1.953125) / len(g),
        "sq_error_rel": 100 * np.average(np.power(p / g - 1, 2)),
        "abs_error_rel": 100 * np.average(np.abs(p / g - 1)),
        "irmse": np.sqrt(np.average(np.power(1000 / p - 1000 / g, 2))),
        "imae": np.average(np.abs(1000 / p - 1000 / g)),
    }
    return {**{name: known[name] for name in rules.names}, **row}, (true, g, p)


def derive_ranges(pairs, edges):
    """Rows of the table by depth from the pairs of all images."""
    true, g, p = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    rows = []
    for low, high in itertools.pairwise(edges):
        here = (low <= true) & (true < high)
        a, b = p[here], g[here]
        row = {"from": low, "to": high, "pixels": len(a)}
        if not len(a):
            rows.append({**row, **dict.fromkeys(("abs_rel", "rmse", "d1", "bias"), math.nan)})
            continue
        near = [x / y < 1.25 and y / x < 1.25 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        rows.append(
            {
                **row,
                "abs_rel": math.fsum(np.abs(a - b) / b) / len(a),
                "rmse": math.sqrt(math.fsum((a - b) ** 2) / len(a)),
                "d1": sum(near) / len(a),
                "bias": math.fsum(a - b) / len(a),
            }
        )
    return rows


def scene(rng, size, rules, share, dtype):
    """Truth with holes, and a prediction with every kind of value, including values exactly at each limit."""
    gt = rng.uniform(0.0, 1.2 * rules.high, size) * (rng.uniform(size=size) < share)
    pred = gt * np.exp(rng.normal(0, 0.3, size)) + (gt == 0) * rng.uniform(0, rules.high, size)
    limits = [rules.low, rules.high, min(rules.clip, rules.high), *rules.edges]
    odd = {
        "gt": [0.0, -1.0, np.nan, np.inf, *limits],
        "pred": [0.0, -3.0, np.nan, np.inf, -np.inf, 1e30, *limits],
    }
    for values, kind in ((gt, "gt"), (pred, "pred")):
        where = rng.uniform(size=size) < 0.05
        values[where] = rng.choice(odd[kind], int(where.sum()))
    tie = rng.uniform(size=size) < 0.05
    pred[tie] = gt[tie] * 1.25  # not below the threshold 1.25, unless rounding says so
    return pred.astype(dtype), gt.astype(dtype)


def load(name):
    if name != "custom":
        return load_protocol(name)
    node = OmegaConf.load(conf_dir() / "protocol" / "custom.yaml")
    node.max_depth = float(RULES["custom"].high)
    return load_protocol(node)


def compare(result, expected):
    assert list(result) == list(expected)
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, rel=1e-9, abs=1e-10, nan_ok=True), key


def test_every_shipped_protocol_is_derived():
    assert set(RULES) == {path.stem for path in (conf_dir() / "protocol").glob("*.yaml")}


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("name", RULES)
def test_agrees_with_the_derivation(name):
    rules, protocol = RULES[name], load(name)
    assert protocol.name == name
    assert protocol.metrics == rules.names

    @settings(max_examples=12, deadline=None)
    @example(seed=0, share=0.0, size=rules.sizes[0], dtype=np.float32, second=True)
    @given(
        seed=st.integers(0, 2**32 - 1),
        share=st.sampled_from([0.0, 0.001, 0.02, 0.3]),
        size=st.sampled_from(rules.sizes),
        dtype=st.sampled_from([np.float32, np.float64]),
        second=st.booleans(),
    )
    def agrees(seed, share, size, dtype, second):
        rng = np.random.default_rng(seed)
        metric, pairs = DepthMetrics(protocol), []
        for index in range(1 + second):
            pred, gt = scene(rng, size, rules, share, dtype)
            expected, pixels = derive(pred, gt, rules)
            compare(evaluate_image(pred, gt, protocol), expected)
            truth = uncut(torch.from_numpy(gt)[None, None], torch.tensor([index]))
            metric.update(torch.from_numpy(pred)[None, None], truth)
            pairs.append(pixels)
            row = metric.table()[index]
            compare({key: row[key] for key in expected}, expected)
        ranges = metric.evaluation().by_depth
        expected_ranges = derive_ranges(pairs, rules.edges)
        assert len(ranges) == len(expected_ranges)
        for row, expected in zip(ranges, expected_ranges, strict=True):
            compare(row, expected)

    agrees()
