"""The network on a CUDA device: the same numbers as on the CPU, in all precisions, and training that learns."""

import os
import subprocess
import sys

import pytest
import torch

from agreement import assert_same_depth
from sa2depth import create_model
from sa2depth.infer import Predictor
from sa2depth.losses import SILog
from sa2depth.ops import dcnv3, rank_attention, selective_scan_2d

pytestmark = pytest.mark.gpu


def _arguments(name, device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    if name == "dcnv3":
        mask = draw(2, 9, 11, 2, 9).softmax(-1).flatten(-2)
        return dcnv3, (draw(2, 9, 11, 32), draw(2, 9, 11, 36), mask), {"groups": 2}
    if name == "rank_attention":
        return rank_attention, (draw(2, 3, 50, 16), draw(2, 3, 37, 16), draw(2, 3, 37, 16), 0.25), {}
    parameters = draw(4, 12, 8), draw(4, 8, 4), draw(4, 8), draw(32, 4), draw(32)
    return selective_scan_2d, (draw(2, 8, 13, 17), *parameters), {}


@pytest.mark.parametrize("name", ["dcnv3", "rank_attention", "selective_scan_2d"])
def test_operators_agree_with_the_cpu_forward_and_backward(name):
    results = []
    for device in ("cpu", "cuda"):
        function, arguments, options = _arguments(name, device)
        leaves = [a.requires_grad_() for a in arguments if isinstance(a, torch.Tensor)]
        output = function(*arguments, **options)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=device).view_as(output)
        gradients = torch.autograd.grad((output * weights).sum(), leaves)
        results.append([t.detach().cpu() for t in (output, *gradients)])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sa2depth_nano", "sa2depth_t"])
def test_a_model_agrees_with_the_cpu(name):
    torch.manual_seed(0)
    model = create_model(name, min_depth=0.1, max_depth=10).eval().double()
    image = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        on_cpu = model(image).depth
        on_cuda = model.cuda()(image.cuda()).depth.cpu()
    torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_finite_and_close(dtype):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).eval().cuda()
    image = torch.rand(2, 3, 96, 128, device="cuda")
    with torch.no_grad():
        exact = model(image).depth
        with torch.autocast("cuda", dtype):
            mixed = model(image).depth
    assert torch.isfinite(mixed).all()
    assert ((mixed - exact) / exact).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_overfits_a_batch(precision):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda()
    image = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4, device="cuda"), 64, mode="bilinear")
    depth = 1 + 4 * image.mean(1, keepdim=True)
    optimizer, loss = torch.optim.AdamW(model.parameters(), 3e-3), SILog()
    losses = []
    for _ in range(150):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss(model(image).depth, depth, depth > 0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    print(precision, [round(value, 4) for value in losses[::10]])
    assert losses[-1] < 0.4 * losses[0]


def test_the_predictor_moves_to_the_device():
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10)
    picture = (torch.rand(50, 70, 3) * 255).byte().numpy()
    on_cpu = Predictor(model, device="cpu")(picture).depth
    on_cuda = Predictor(model, device="cuda")(picture).depth
    assert on_cuda.shape == (50, 70)
    # TF32 in cuDNN's convolutions, and ranks
    assert_same_depth(on_cuda, on_cpu, beyond=1e-3, median=5e-4, rms=5e-4)


_WHOLE = """
import torch
from sa2depth import create_model

torch.manual_seed(0)
model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).eval().cuda()
image = torch.rand(1, 3, 64, 96, device="cuda")
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True, dynamic=False)(image).depth
    away = (compiled / model(image).depth - 1).abs()  # single pixels may move by more: tests/agreement.py
    assert away.median() < 5e-4, away.median()
    assert away.square().mean().sqrt() < 5e-4, away.square().mean().sqrt()
"""


def test_a_whole_network_compiles_as_the_first_thing_on_a_machine(tmp_path):
    # no kernel is there yet, and no operator has passed its self-test
    environment = {**os.environ, "SA2DEPTH_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _WHOLE], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_whole_network_of_released_size_has_no_graph_break():
    model = create_model("sa2depth_t", min_depth=0.1, max_depth=10).eval().cuda()
    image = torch.rand(1, 3, 96, 128, device="cuda")
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")(image).depth
        assert_same_depth(compiled, model(image).depth, beyond=1e-3, median=5e-4, rms=1e-3)
