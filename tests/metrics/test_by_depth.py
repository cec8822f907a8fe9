import math

import torch

from sa2depth.metrics import DepthMetrics, Protocol
from views import uncut

RANGED = Protocol(name="open", version=1, min_depth=1e-3, max_depth=10.0, depth_ranges=(0, 2, 4, 8))


def metric(images, protocol=RANGED):
    """Scores ``(predictions, truths)`` of one-row images."""
    result = DepthMetrics(protocol)
    for index, (pred, truth) in enumerate(images):
        guess, depth = (torch.tensor(side, dtype=torch.float64)[None, None, None] for side in (pred, truth))
        result.update(guess, uncut(depth, torch.tensor([index])))
    return result


def test_pooled_over_pixels_not_over_images():
    rows = metric([([1.5], [1.0]), ([2.0, 1.0, 1.0], [1.0, 1.0, 1.0])]).evaluation().by_depth
    assert list(rows[0]) == ["from", "to", "pixels", "abs_rel", "rmse", "d1", "bias"]
    assert rows[0] == {
        "from": 0,
        "to": 2,
        "pixels": 4,
        "abs_rel": 1.5 / 4,
        "rmse": math.sqrt(1.25 / 4),
        "d1": 0.5,
        "bias": 1.5 / 4,
    }
    assert isinstance(rows[0]["pixels"], int)


def test_edges_belong_to_the_upper_interval_and_empty_ones_are_nan():
    rows = metric([([1.0, 1.0, 1.0], [2.0, 4.0, 8.0])]).evaluation().by_depth
    assert [row["pixels"] for row in rows] == [0, 1, 1]  # 8 m is beyond the last edge, though scored
    assert all(math.isnan(rows[0][key]) for key in ("abs_rel", "rmse", "d1", "bias"))
    assert [row["bias"] for row in rows[1:]] == [-1.0, -3.0]


def test_the_truth_alone_decides_and_its_clipping_does_not():
    clipped = Protocol(
        name="open", version=1, min_depth=1e-3, max_depth=10.0, clip_both_at=8.0, depth_ranges=(0, 8.5, 10)
    )
    rows = metric([([9.5, 1.0], [9.0, 9.0])], clipped).evaluation().by_depth
    assert [row["pixels"] for row in rows] == [0, 2]
    assert rows[1]["bias"] == -3.5  # scored as 8 against 8, and 1 against 8


def test_only_scored_pixels_and_repaired_predictions():
    rows = metric([([1.0, math.inf, 3.0, 3.0], [0.0, 3.0, 3.0, 11.0])]).evaluation().by_depth
    assert [row["pixels"] for row in rows] == [0, 2, 0]
    assert rows[1]["bias"] == 3.5  # infinity is scored as 10 m


def test_no_ranges_no_rows():
    plain = Protocol(name="open", version=1, min_depth=1e-3, max_depth=10.0)
    assert metric([([1.0], [1.0])], plain).evaluation().by_depth == []
    assert [row["pixels"] for row in DepthMetrics(RANGED).evaluation().by_depth] == [0, 0, 0]
