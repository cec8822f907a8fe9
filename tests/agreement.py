"""Bounds on the difference of two float32 computations of one network.

A key belongs to a group by the rank of its score. If two scores at a group's border differ by less than
float32's rounding, the machine, the number of threads, the batch and every other form of the same function (folded
norms, compiled layers) decide which of the keys belongs to it, and no float32 computation is more right than another.
Such a swap changes the querying pixel by up to some tenths of a percent, its neighbours (11x11 gates, a scan over the
map) by less and the others by about 1e-5. So a test cannot bound the largest difference. It bounds, in float32:

- the median: most pixels agree to a few roundings,
- the share: a swap changes few pixels,
- the RMS: all differences together are small.

A test of logic does not need these bounds: in float64 (``model.double()``) scores are 1e8 times less likely to be that
near, and the tolerance is 1e-10. Use these functions only to test float32 itself, or code that runs in float32 alone.
"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

THRESHOLDS = frozenset({"d1", "d2", "d3"})
"""Metrics that count the pixels on one side of a threshold."""


def assert_same_depth(actual, expected, *, beyond=1e-4, share=0.02, rms=2e-4, median=1e-5):
    """Compare depth maps pixel by pixel, as shares of the expected depth.

    The defaults are four times what one swap does in the nano model at 96x160 (0.6 % of the pixels move by more than
    1e-4, RMS 5.5e-5, median 2e-6, but 1.9e-3 in the worst pixel).

    Args:
        actual: metres, an array or a tensor on any device.
        expected: the same shape.
        beyond: relative difference that pixels far from any swap do not reach.
        share: share of pixels that may be above ``beyond``.
        rms: largest RMS of the relative differences.
        median: largest median of the relative differences.
    """
    away = _relative(actual, expected)
    said = (
        f"median {np.median(away):.1e}, RMS {np.sqrt(np.mean(away**2)):.1e}, {100 * np.mean(away > beyond):.2f} % "
        f"beyond {beyond:g}, largest {away.max():.1e}"
    )
    assert np.median(away) <= median, said
    assert np.mean(away > beyond) <= share, said
    assert np.sqrt(np.mean(away**2)) <= rms, said


def assert_same_values(actual, expected, *, rms, median, what=""):
    """Compare feature maps or gradients, whose values cross zero: differences as shares of the largest value.

    Args:
        actual: an array or a tensor on any device.
        expected: the same shape.
        rms: largest RMS of the differences.
        median: largest median of the differences.
        what: name of the compared values, for the message.
    """
    one, other = _array(actual), _array(expected)
    assert one.shape == other.shape, what
    away = np.abs(one - other) / max(np.abs(other).max(), 1e-30)
    said = (
        f"{what}: median {np.median(away):.1e}, RMS {np.sqrt(np.mean(away**2)):.1e}, largest {away.max():.1e}"
    )
    assert np.median(away) <= median, said
    assert np.sqrt(np.mean(away**2)) <= rms, said


def assert_same_scores(
    actual: Mapping[str, object], expected: Mapping[str, object], *, rel=1e-3, share=2e-3
) -> None:
    """Compare the metrics of two runs of one network.

    Args:
        actual: values by name; texts of a table are read as numbers.
        expected: the same names.
        rel: relative tolerance of metrics that follow the depth; a swap changes them no more than the RMS of 5e-5.
        share: share of pixels that may cross a threshold (d1, d2, d3).
    """
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        bound = {"rel": 0, "abs": share} if name in THRESHOLDS else {"rel": rel, "abs": 1e-6}
        assert float(actual[name]) == pytest.approx(float(value), nan_ok=True, **bound), name


def _relative(actual, expected):
    one, other = _array(actual), _array(expected)
    assert one.shape == other.shape
    return np.abs(one - other) / np.abs(other)


def _array(values):
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return values.astype(np.float64)
