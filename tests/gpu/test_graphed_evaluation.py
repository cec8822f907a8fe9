"""Validation and test replayed from CUDA graphs give the numbers of the layers as they are."""

from contextlib import nullcontext

import pytest
import torch

from sa2depth import create_model
from sa2depth.lit import DepthModule
from sa2depth.lit.callbacks.forms import CudaGraphs
from sa2depth.metrics import load_protocol
from sa2depth.runtime.replayed import Graphed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_depth_is_that_of_the_layers_as_they_are(precision):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0).cuda().eval()
    protocol = load_protocol("nyu_none")
    plain, replayed = (DepthModule(model, protocol=protocol).cuda() for _ in range(2))
    graphs = CudaGraphs(True)
    autocast = torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else nullcontext()
    for _epoch in range(2):
        graphs.on_validation_epoch_start(None, replayed)
        for _batch in range(4):
            image = torch.rand(2, 3, 96, 128, device="cuda")
            with torch.inference_mode(), autocast:
                expected, actual = plain(image), replayed(image)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert isinstance(replayed.replayed, Graphed)
        assert len(replayed.replayed._graphs) == 1
        with torch.no_grad():  # an optimiser's step between two validations
            for weight in model.parameters():
                weight.mul_(1.01)
        graphs.on_validation_epoch_end(None, replayed)
