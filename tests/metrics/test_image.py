import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.metrics import METRICS, Protocol, evaluate_image, flip_average, load_protocol

GOLDEN = Path(__file__).parents[1] / "golden"
OPEN = Protocol(name="open", version=1, min_depth=1e-3, max_depth=10.0)


def golden_maps(kind):
    if kind == "kitti":
        file = np.load(GOLDEN / "protocol_kitti.npz")
        return file["pred_kitti"], file["gt_kitti"]
    return np.load(GOLDEN / "protocol_pred.npz")["pred"], np.load(GOLDEN / "protocol_gt.npz")["gt"]


@pytest.mark.parametrize(
    ("row", "protocol"),
    [
        ("nyu_eigen", "nyu_eigen"),
        ("nyu_none", "nyu_none"),
        ("sun", "sun_nyu_8m"),
        ("kitti_garg", "kitti_eigen_garg"),
        ("kitti_eigen", "kitti_eigen_eigen"),
    ],
)
@pytest.mark.parametrize("as_torch", [False, True])
def test_golden(row, protocol, as_torch):
    pred, gt = golden_maps("kitti" if "kitti" in row else "nyu")
    nonfinite = int((~np.isfinite(pred)).sum())
    if as_torch:
        pred, gt = torch.from_numpy(pred)[None, None], torch.from_numpy(gt)[None]
    result = evaluate_image(pred, gt, protocol)
    expected = np.load(GOLDEN / "protocol_rows.npz")[row].astype(np.float64)
    np.testing.assert_allclose([result[key] for key in (*METRICS, "pixels")], expected, rtol=1e-6, atol=0)
    assert result["nonfinite_pixels"] == nonfinite
    assert (nonfinite > 0) == ("kitti" not in row)


@pytest.mark.parametrize("protocol", ["kitti_eigen_garg", "kitti_eigen_eigen"])
@pytest.mark.parametrize("size", [(370, 1224), (376, 1241), (352, 1216)])
def test_whole_images_are_cut_to_the_frame(protocol, size):
    """The golden maps lie inside a larger image, with invalid values around them."""
    pred, gt = golden_maps("kitti")
    top, left = size[0] - 352, (size[1] - 1216) // 2
    whole_pred, whole_gt = np.full(size, np.nan, np.float32), np.full(size, 3.0, np.float32)
    for whole, part in ((whole_pred, pred), (whole_gt, gt)):
        whole[top:, left : left + 1216] = part
    assert evaluate_image(whole_pred, whole_gt, protocol) == evaluate_image(pred, gt, protocol)


def test_images_smaller_than_the_frame():
    with pytest.raises(ShapeError, match="the frame is 352x1216 pixels"):
        evaluate_image(np.ones((350, 1242)), np.ones((350, 1242)), "kitti_eigen_garg")


def test_garg_on_the_whole_image_is_another_score():
    pred, gt = golden_maps("kitti")
    full = evaluate_image(pred, gt, "kitti_eigen_garg_full")
    assert full == evaluate_image(pred, gt, "kitti_eigen_garg")  # an image that is all frame
    wide = [np.pad(side, ((23, 0), (13, 13)), mode="edge") for side in (pred, gt)]
    assert evaluate_image(*wide, "kitti_eigen_garg_full")["pixels"] > full["pixels"]


def plain_numpy(pred, gt, low, high):
    """An independent formula, directly from Eigen et al."""
    keep = [(p, g) for p, g in zip(pred.ravel().tolist(), gt.ravel().tolist(), strict=True) if low < g < high]
    if not keep:
        return None
    p, g = (np.array(side, np.float64) for side in zip(*keep, strict=True))
    p = np.minimum(np.maximum(p, low), high)
    log = np.log(p / g)
    ratio = np.where(p > g, p / g, g / p)
    return {
        "silog": 100 * np.std(log),
        "abs_rel": np.mean(np.abs(p - g) / g),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "log_rmse": np.sqrt(np.mean(log**2)),
        "d1": np.mean(ratio < 1.25),
        "d2": np.mean(ratio < 1.25**2),
        "d3": np.mean(ratio < 1.25**3),
        "pixels": len(keep),
    }


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    limits=st.sampled_from([(1e-3, 10.0), (0.5, 4.0), (1.0, 80.0)]),
)
def test_plain_numpy_agrees(data, shape, limits):
    values = st.one_of(st.just(0.0), st.floats(0.01, 90.0))
    pred, gt = (data.draw(hnp.arrays(np.float64, shape, elements=values)) for _ in range(2))
    protocol = Protocol(name="any", version=1, min_depth=limits[0], max_depth=limits[1])
    result = evaluate_image(pred, gt, protocol)
    expected = plain_numpy(pred, gt, *limits)
    if expected is None:
        assert result["pixels"] == 0
        assert all(math.isnan(result[key]) for key in METRICS)
        return
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


def test_perfect_prediction():
    gt = np.random.RandomState(0).uniform(0.5, 9.0, (7, 9))
    result = evaluate_image(gt, gt, OPEN)
    assert [result[key] for key in METRICS] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert (result["pixels"], result["nonfinite_pixels"]) == (63, 0)


def test_silog_of_scaled_float32_predictions_is_finite():
    for seed in range(200):
        gt = np.random.RandomState(seed).uniform(0.5, 4.0, (8, 8)).astype(np.float32)
        silog = evaluate_image(gt * np.float32(1.5), gt, OPEN)["silog"]
        assert 0 <= silog < 1e-3


def test_nonfinite_predictions_are_scored_as_released_and_counted():
    gt = np.full((2, 3), 2.0)
    pred = np.array([[np.nan, np.inf, -np.inf], [2.0, 2.0, 2.0]])
    repaired = np.array([[1e-3, 10.0, 1e-3], [2.0, 2.0, 2.0]])
    result, expected = evaluate_image(pred, gt, OPEN), evaluate_image(repaired, gt, OPEN)
    assert result.pop("nonfinite_pixels") == 3
    assert expected.pop("nonfinite_pixels") == 0
    assert result == expected


def test_nonfinite_predictions_outside_the_mask_are_counted_too():
    gt = np.array([[2.0, 0.0]])
    result = evaluate_image(np.array([[2.0, np.nan]]), gt, OPEN)
    assert (result["pixels"], result["nonfinite_pixels"], result["abs_rel"]) == (1, 1, 0)


def test_empty_mask():
    result = evaluate_image(np.ones((4, 4)), np.zeros((4, 4)), OPEN)
    assert result["pixels"] == 0
    assert all(math.isnan(result[key]) for key in METRICS)


def test_limits_are_strict():
    gt = np.array([[1e-3, 10.0, 5.0, np.nan, np.inf]], np.float32)
    assert evaluate_image(np.ones_like(gt), gt, OPEN)["pixels"] == 1


def test_half_precision_is_scored_in_float64():
    gt = torch.rand(5, 5, dtype=torch.float64) * 5 + 1
    pred = (gt * 1.1).bfloat16()
    assert evaluate_image(pred, gt, OPEN) == evaluate_image(pred.double(), gt, OPEN)


@pytest.mark.parametrize(
    ("pred", "gt", "message"),
    [
        (np.ones((4, 5)), np.ones((5, 4)), r"\(4, 5\).*\(5, 4\)"),
        (np.ones((2, 4, 5)), np.ones((2, 4, 5)), r"pred.*\(2, 4, 5\)"),
        (np.ones((4, 5)), np.ones((4, 5), np.uint16), "gt.*uint16"),
    ],
)
def test_wrong_shapes(pred, gt, message):
    with pytest.raises(ShapeError, match=message):
        evaluate_image(pred, gt, OPEN)


def test_unknown_protocol():
    with pytest.raises(ConfigError, match="did you mean nyu_eigen"):
        evaluate_image(np.ones((4, 5)), np.ones((4, 5)), "nyu_eigne")


def test_inputs_are_left_alone():
    pred = np.array([[np.nan, 20.0, 1.0]])
    before = pred.copy()
    evaluate_image(pred, np.ones((1, 3)), OPEN)
    np.testing.assert_array_equal(pred, before)


def test_flip_average_golden():
    file = np.load(GOLDEN / "protocol_rows.npz")
    direct, mirrored = torch.from_numpy(file["flip_a"]), torch.from_numpy(file["flip_b"])
    out = flip_average(direct, mirrored.flip(-1))
    np.testing.assert_allclose(out.numpy(), file["flip_out"], rtol=1e-6, atol=1e-7)
    out = flip_average(direct.double(), mirrored.flip(-1).double())
    np.testing.assert_allclose(out.numpy(), file["flip_out"], rtol=1e-6, atol=1e-7)


def test_flip_average_keeps_equal_predictions_and_mirrors():
    a, b = torch.rand(2, 1, 3, 50, dtype=torch.float64) + 1, torch.rand(2, 1, 3, 50, dtype=torch.float64) + 1
    torch.testing.assert_close(flip_average(a, a), a)
    torch.testing.assert_close(flip_average(b.flip(-1), a.flip(-1)), flip_average(a, b).flip(-1))
    with pytest.raises(ShapeError):
        flip_average(a, b[..., 1:])


def test_every_protocol_field_that_scores_has_effect():
    pred, gt = golden_maps("nyu")
    base = load_protocol("nyu_eigen")
    reference = evaluate_image(pred, gt, base)
    from dataclasses import replace

    changes = [{"min_depth": 1.0}, {"max_depth": 5.0}, {"crop": "none"}, {"clip_both_at": 4.0}]
    changes += [{"metrics": ("abs_rel", "irmse")}, {"crop": "none", "frame": (100, 100)}]
    for change in changes:
        assert evaluate_image(pred, gt, replace(base, **change)) != reference
