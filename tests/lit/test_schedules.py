"""The polynomial schedule: ends where it should, clamps after the end, keeps the groups' own rates."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.lit.schedules import polynomial, polynomial_factor


def test_follows_the_released_curve_between_start_and_end():
    total = 1000
    for step in (0, 1, 250, 999):
        released = (1 - step / total) ** 0.9  # of the part above the end rate
        assert polynomial_factor(step, total, 0.9, 0.1) == pytest.approx(0.1 + 0.9 * released)


@pytest.mark.parametrize("step", [1000, 1001, 10**6])
def test_stays_real_and_at_the_end_rate_past_the_end(step):
    factor = polynomial_factor(step, 1000, 0.9, 0.1)
    assert isinstance(factor, float)
    assert factor == pytest.approx(0.1)


def test_warms_up_linearly():
    factors = [polynomial_factor(step, 10**9, 1.0, 1.0, warmup_steps=4) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_scales_every_group_by_its_own_rate():
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 0.5}])
    schedule = polynomial(optimizer, 2, power=1.0, end_factor=0.0)
    rates = []
    for _ in range(3):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates == [[1.0, 0.5], [0.5, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize("bad", [{"power": 0.0}, {"end_factor": 1.5}, {"warmup_steps": -1}])
def test_refuses_nonsense(bad):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ConfigError, match=next(iter(bad))):
        polynomial(optimizer, 10, **bad)


def test_refuses_a_run_without_length():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ConfigError, match="max_epochs"):
        polynomial(optimizer, -1)


def test_a_run_without_a_step_is_an_error():
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    for end_factor in (0.1, 1.0):
        with pytest.raises(ConfigError, match="the run has no training step"):
            polynomial(optimizer, 0, end_factor=end_factor)
