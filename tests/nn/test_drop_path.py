"""Stochastic depth."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.nn import DropPath


def test_it_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    out = DropPath(0.25).train()(x)
    per_image = out.flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    kept = per_image[:, 0] > 0
    torch.testing.assert_close(per_image[kept], torch.full_like(per_image[kept], 1 / 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.03


def test_it_does_nothing_in_evaluation_or_at_rate_zero():
    x = torch.rand(3, 5, 2, 2)
    assert DropPath(0.9).eval()(x) is x
    assert torch.equal(DropPath(0.0).train()(x), x)


def test_half_precision_stays():
    assert DropPath(0.1).train()(torch.rand(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_rate_is_no_weight():
    assert not DropPath(0.5).state_dict()


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ConfigError, match="drop path rate"):
        DropPath(rate)


def test_random_numbers_may_be_given():
    x, drawn = torch.ones(4, 3), torch.tensor([[0.1], [0.7], [0.76], [0.9]])
    out = DropPath(0.25).train()(x, drawn)
    assert out[:, 0].tolist() == pytest.approx([4 / 3, 4 / 3, 0, 0])
