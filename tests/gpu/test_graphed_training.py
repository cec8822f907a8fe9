"""Training replayed from CUDA graphs follows the same path as training without."""

import copy

import pytest
import torch

from sa2depth import create_model
from sa2depth.losses import SILog
from sa2depth.models.graphed import GraphedTraining

pytestmark = pytest.mark.gpu


def batches(count, size=64):
    torch.manual_seed(3)
    for _ in range(count):
        image = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4, device="cuda"), size, mode="bilinear")
        yield image, 1 + 4 * image.mean(1, keepdim=True)


def train(model, call, dtype, steps=6):
    torch.manual_seed(5)
    optimizer, loss, losses = torch.optim.AdamW(model.parameters(), 1e-3), SILog(), []
    for image, depth in batches(steps):
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            value = loss(call(image).depth, depth, depth > 0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_losses_and_statistics_are_the_same(dtype):
    torch.manual_seed(0)
    eager = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
    model = copy.deepcopy(eager)
    graphed = GraphedTraining(model, required=True)
    expected, actual = train(eager, eager, dtype), train(model, graphed, dtype)
    assert actual == pytest.approx(expected, rel=2e-2 if dtype else 1e-3)
    assert actual[-1] < actual[0]
    for (name, reference), value in zip(eager.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(value, reference, rtol=0.05, atol=0.05, msg=name)
        if "num_batches" in name:
            assert value == 6


def test_drop_path_draws_anew_at_each_replay():
    torch.manual_seed(0)
    model = create_model("sa2depth_t", min_depth=0.1, max_depth=10).cuda().train()
    for layer in model.encoder.stages[2].blocks:
        layer.drop_path.rate.fill_(0.5)
    graphed, (image, _) = GraphedTraining(model, required=True), next(batches(1, 96))
    outputs = [graphed(image).depth.detach().clone() for _ in range(3)]
    assert not torch.equal(outputs[1], outputs[2])


def test_another_shape_runs_without_graphs():
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
    graphed = GraphedTraining(model, required=True)
    for size in (64, 96, 64):
        (image, _) = next(batches(1, size))
        depth = graphed(image).depth
        assert depth.shape[-1] == size
        depth.sum().backward()


def test_what_cannot_be_captured_runs_all_the_same(caplog):
    class Copies(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10)

        def forward(self, image):
            image.mean().item()
            return self.model(image)

    model = Copies().cuda().train()
    (image, _) = next(batches(1))
    graphed = GraphedTraining(model)
    for _ in range(2):
        assert torch.isfinite(graphed(image).depth).all()
    assert "training runs without CUDA graphs" in caplog.text
    with pytest.raises(RuntimeError):
        GraphedTraining(model, required=True)(image)
