"""A whole network on the back end triton gives the depth of the torch path."""

import pytest
import torch

from sa2depth.models import create_model
from sa2depth.ops import use_backend


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:divide by zero")  # the logarithm of an empty group's sum, in NumPy
def test_a_network(device):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).eval().to(device)
    image = torch.rand(1, 3, 64, 64, device=device)
    with torch.no_grad():
        depth = model(image).depth
        with use_backend("torch"):
            expected = model.double()(image.double()).depth
    torch.testing.assert_close(depth.double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01
