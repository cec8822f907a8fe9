"""A whole network on the back end triton gives the depth of the torch path: interpreted, and compiled on a GPU."""

import pytest
import torch

from ops.ways import interpret, poison
from sa2depth.models import create_model
from sa2depth.ops import use_backend

pytestmark = pytest.mark.slow

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:divide by zero")  # the logarithm of an empty group's sum, in NumPy
@pytest.mark.parametrize("kind", ["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)])
def test_a_network(kind, monkeypatch):
    if kind == "interpreted" and torch.cuda.is_available():
        pytest.skip("a process has one of the two")
    torch.manual_seed(0)
    device = torch.device("cpu" if kind == "interpreted" else "cuda")
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).eval().to(device)
    image = torch.rand(1, 3, 64, 64, device=device)
    poison(monkeypatch)
    if kind == "interpreted":
        interpret(monkeypatch)
    with torch.no_grad():
        with use_backend("triton"):
            depth = model(image).depth
        with use_backend("torch"):
            expected = model.double()(image.double()).depth
    torch.testing.assert_close(depth.double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01
