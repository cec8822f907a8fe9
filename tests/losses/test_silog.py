import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.losses import SILog
from sa2depth.masks import valid_mask
from sa2depth.resources import conf_dir

GOLDEN = Path(__file__).parents[1] / "golden"


def plain(pred, target, valid, focus, scale=10.0):
    """The textbook formula, as in the released code."""
    d = torch.log(pred[valid]) - torch.log(target[valid])
    return torch.sqrt((d**2).mean() - focus * d.mean() ** 2) * scale


def batch(seed=0, dtype=torch.float64, shape=(3, 1, 11, 13)):
    rng = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=rng, dtype=dtype) * 9 + 0.5
    pred = target * torch.exp(0.3 * torch.randn(shape, generator=rng, dtype=dtype) + 0.1)
    valid = torch.rand(shape, generator=rng) > 0.3
    return pred, target, valid


@pytest.mark.parametrize("focus", [0.85, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-6)])
def test_golden(focus, dtype, tolerance):
    gt = torch.from_numpy(np.load(GOLDEN / "protocol_gt.npz")["gt"])[None, None]
    pred = np.clip(np.nan_to_num(np.load(GOLDEN / "protocol_pred.npz")["pred"], nan=1, posinf=9), 0.01, 10)
    loss = SILog(focus)(torch.from_numpy(pred)[None, None].to(dtype), gt.to(dtype), valid_mask(gt, 0.1))
    expected = float(np.load(GOLDEN / "protocol_rows.npz")[f"silog_{focus}"][0])
    assert loss.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("focus", [0.0, 0.5, 0.85, 1.0])
def test_value_and_gradient_of_the_plain_formula(focus):
    pred, target, valid = batch()
    ours, theirs = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    loss, expected = SILog(focus)(ours, target, valid), plain(theirs, target, valid, focus)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)
    assert ours.grad[valid].abs().min() > 0


def test_gradcheck():
    pred, target, valid = batch(shape=(2, 1, 3, 4))
    torch.autograd.gradcheck(lambda p: SILog()(p, target, valid), pred.requires_grad_())


def test_scale_and_focus_have_effect():
    pred, target, valid = batch()
    assert SILog(scale=5.0)(pred, target, valid) * 2 == pytest.approx(SILog()(pred, target, valid).item())
    assert SILog(0.2)(pred, target, valid) > SILog(0.9)(pred, target, valid)
    # a focus of 1 does not see a global factor
    loss = SILog(1.0)(3 * pred, target, valid)
    torch.testing.assert_close(loss, SILog(1.0)(pred, target, valid), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("focus", [0.85, 1.0])
def test_perfect_prediction(dtype, focus):
    _, target, valid = batch(dtype=dtype)
    pred = target.clone().requires_grad_()
    loss = SILog(focus)(pred, target, valid)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(pred.grad, torch.zeros_like(pred))


def test_exactly_scaled_prediction_is_finite_in_float32():
    # sqrt(mean(d^2) - mean(d)^2) rounds below zero here for many factors
    for seed in range(50):
        _, target, valid = batch(seed, dtype=torch.float32)
        pred = (target * (1 + seed / 7)).requires_grad_()
        loss = SILog(1.0)(pred, target, valid)
        loss.backward()
        assert math.isfinite(loss.item())
        assert loss.item() < 1e-4
        assert torch.isfinite(pred.grad).all()


def test_empty_mask_keeps_the_graph_and_ignores_nan():
    pred, target, valid = batch()
    pred[0, 0, 0, 0], pred[0, 0, 0, 1], pred[0, 0, 0, 2] = math.nan, math.inf, 0.0
    pred.requires_grad_()
    loss = SILog()(pred, torch.zeros_like(target), torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(pred.grad, torch.zeros_like(pred))


def test_nan_under_an_invalid_pixel_changes_nothing():
    pred, target, valid = batch()
    expected = SILog()(pred, target, valid)
    pred = torch.where(valid, pred, math.nan).requires_grad_()
    target = torch.where(valid, target, -1.0)
    loss = SILog()(pred, target, valid)
    loss.backward()
    assert loss == expected
    assert torch.equal(pred.grad[~valid], torch.zeros_like(pred.grad[~valid]))
    assert torch.isfinite(pred.grad).all()


def test_nan_at_a_valid_pixel_stays_nan():
    pred, target, valid = batch()
    pred[valid.nonzero()[0].unbind()] = math.nan
    assert SILog()(pred, target, valid).isnan()


@pytest.mark.parametrize("bad", [0.0, -2.0, -math.inf])
def test_prediction_of_zero_or_below(bad):
    pred, target, valid = batch(dtype=torch.float32)
    valid[0, 0, 0, 0] = True
    pred[0, 0, 0, 0] = bad
    pred.requires_grad_()
    loss = SILog()(pred, target, valid)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(pred.grad).all()
    assert pred.grad[0, 0, 0, 0] == 0


def test_float32_under_autocast():
    pred, target, valid = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SILog()(pred, target, valid)
    assert loss.dtype == torch.float32
    assert loss == SILog()(pred, target, valid)
    assert SILog()(pred.bfloat16(), target, valid).dtype == torch.float32


def test_refuses_wrong_shapes_masks_and_settings():
    pred, target, valid = batch()
    with pytest.raises(ShapeError, match=r"\(3, 1, 11, 12\)"):
        SILog()(pred[..., :-1], target, valid)
    with pytest.raises(ShapeError, match="bool"):
        SILog()(pred, target, valid.float())
    for settings in ({"variance_focus": 1.1}, {"scale": 0.0}, {"eps": -1.0}):
        with pytest.raises(ConfigError):
            SILog(**settings)


def test_config_builds_it():
    loss = instantiate(OmegaConf.load(conf_dir() / "loss" / "silog.yaml"))
    assert isinstance(loss, SILog)
    assert (loss.variance_focus, loss.scale) == (0.85, 10.0)
