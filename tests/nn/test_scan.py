"""The selective scan in fewer directions."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.nn import SelectiveScan2d
from sa2depth.ops import cpu, selective_scan_2d, use_backend

ROWS = {1: [0], 2: [0, 2]}
"""The directions that are used, by their number."""


def parameters(directions, channels=5, states=3, rank=2):
    random = torch.Generator().manual_seed(0)
    shapes = (rank + 2 * states, channels), (channels, rank), (channels,), (channels, states), (channels,)
    one = [torch.randn(directions, *shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [*one[:3], one[3].flatten(0, 1), one[4].flatten(0, 1)]


@pytest.mark.parametrize("directions", ROWS)
def test_fewer_directions_are_a_subset_of_the_four(directions):
    """A scan in all four directions gives the same if the matrices C and D of the others are zero."""
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    few, four = parameters(directions), parameters(4)
    four[0][:, -3:], four[4][:] = 0, 0
    for place, direction in enumerate(ROWS[directions]):
        for own, all_own in zip(few, four, strict=True):
            size = len(own) // directions
            all_own[direction * size :][:size] = own[place * size :][:size]
    torch.testing.assert_close(selective_scan_2d(x, *few), selective_scan_2d(x, *four))


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_the_layer_has_weights_for_each_direction(directions):
    layer = SelectiveScan2d(8, 4, directions=directions)
    assert len(layer.x_proj_weight) == directions
    layer(torch.rand(1, 8, 4, 6)).sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


def test_three_directions_are_refused():
    with pytest.raises(ConfigError, match="4, 2 or 1 directions, not 3"):
        SelectiveScan2d(8, directions=3)


@pytest.mark.skipif(bool(cpu.why_unavailable()), reason=cpu.why_unavailable())
def test_kernels_decline_fewer_directions_with_the_reason():
    layer = SelectiveScan2d(8, 4, directions=2)
    with use_backend("cpu"), pytest.raises(ConfigError, match="the kernels scan in 4 directions, not 2"):
        layer(torch.rand(1, 8, 4, 6))
