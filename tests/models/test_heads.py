"""Arguments of the heads: levels and widths of the bins, fusion, feed-forward and scan directions."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.models import BinHead, ScanHead, UniformBins
from sa2depth.nn import Mlp, SumFusion

CHANNELS = [4, 6]


@pytest.fixture
def levels():
    torch.manual_seed(0)
    return [torch.rand(2, 4, 8, 12, requires_grad=True), torch.rand(2, 6, 4, 6, requires_grad=True)]


def test_bins_from_the_last_level_only(levels):
    head = BinHead(CHANNELS, 8, 5, "last", min_depth=1, max_depth=9)
    assert len(head.projections) == 1
    head(levels).square().sum().backward()
    assert levels[0].grad.any()
    assert levels[1].grad is None


def test_other_levels_are_refused():
    with pytest.raises(ConfigError, match="levels=all or levels=last, not first"):
        BinHead(CHANNELS, 8, 5, "first", min_depth=1, max_depth=9)


def test_uniform_bins(levels):
    head = UniformBins(CHANNELS, 4, min_depth=1, max_depth=9)
    assert head(levels).tolist() == [[2, 4, 6, 8]] * 2
    assert not head.state_dict()


def test_a_sum_instead_of_the_selection(levels):
    head = ScanHead(CHANNELS, 8, 5, 4, directions=1, fusion=SumFusion, feed_forward=Mlp)
    fine, coarse = (project(level) for project, level in zip(head.fusion.projections, levels, strict=True))
    upsampled = torch.nn.functional.interpolate(coarse, (8, 12), mode="bilinear")
    torch.testing.assert_close(head.fusion(levels), fine + upsampled)
    head(levels).square().sum().backward()
    assert all(p.grad.any() for p in head.parameters())
