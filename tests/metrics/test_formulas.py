import math

import numpy as np
import pytest
import torch

from sa2depth.metrics import KNOWN_METRICS, METRICS, OFFICIAL_METRICS, evaluate_image, load_protocol
from sa2depth.metrics.formulas import Errors, measure


def one(name, guess, truth):
    pixels = Errors(*(torch.tensor(side, dtype=torch.float64) for side in (guess, truth)))
    return measure(pixels, [name]).item()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # predictions of 4 and 10 m, true depths of 5 and 8 m: errors -1 and 2 m, -20 % and 25 %
        ("sq_error_rel", 100 * (0.04 + 0.0625) / 2),
        ("abs_error_rel", 100 * (0.2 + 0.25) / 2),
        # inverse depths 250 and 100, true ones 200 and 125 per kilometre
        ("irmse", math.sqrt((50**2 + 25**2) / 2)),
        ("imae", 37.5),
        ("abs_rel", 0.225),
        ("sq_rel", (1 / 5 + 4 / 8) / 2),
        ("rmse", math.sqrt(2.5)),
        ("log10", (math.log10(5 / 4) + math.log10(5 / 4)) / 2),
        ("log_rmse", math.log(1.25)),
        ("silog", 100 * math.log(1.25)),
        ("d1", 0.0),  # exactly 1.25 is not below it
        ("d2", 1.0),
        ("d3", 1.0),
    ],
)
def test_by_hand(name, expected):
    assert one(name, [4.0, 10.0], [5.0, 8.0]) == pytest.approx(expected, rel=1e-12)


def test_every_metric_is_tested_above_and_perfect_on_the_truth():
    for name in KNOWN_METRICS:
        assert one(name, [1.0, 3.0, 70.0], [1.0, 3.0, 70.0]) == (1.0 if name in ("d1", "d2", "d3") else 0.0)
        assert math.isnan(one(name, [], []))
    assert (*METRICS, *OFFICIAL_METRICS) == KNOWN_METRICS


def test_the_official_protocol_counts_every_measured_pixel_up_to_what_a_png_can_say():
    # the least and the largest of a 16-bit PNG, in metres; 0 is not measured
    gt = np.array([[1, 65535, 0]], np.float32) / 256
    result = evaluate_image(np.full_like(gt, 2.0), gt, "kitti_official")
    assert list(result)[:5] == ["silog", "sq_error_rel", "abs_error_rel", "irmse", "imae"]
    assert result["pixels"] == 2
    assert result["imae"] == pytest.approx(1000 * ((256 - 0.5) + (0.5 - 256 / 65535)) / 2)
    assert result["abs_error_rel"] == 100 * result["abs_rel"]


def test_metrics_are_reported_in_the_protocols_order():
    for name in ("nyu_eigen", "kitti_official"):
        protocol = load_protocol(name)
        gt = np.full((480, 640), 2.0)
        assert list(evaluate_image(gt, gt, protocol)) == [*protocol.metrics, "pixels", "nonfinite_pixels"]
