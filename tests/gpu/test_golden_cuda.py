"""The fast path on CUDA returns the released numbers in float32, prepared and compiled too."""

import pytest
import torch

from agreement import assert_same_depth
from sa2depth.models import create_model
from sa2depth.runtime.compiled import compile_layers
from sa2depth.runtime.inference import for_inference
from sa2depth.runtime.replayed import capture
from sa2depth.weights import from_official

pytestmark = pytest.mark.gpu

SIZES = {
    "t": ("model_t_nyu", 10.0, (96, 128)),
    "s": ("model_s_nyu", 10.0, (96, 128)),
    "l": ("model_l_kitti", 80.0, (96, 160)),
}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Random weights amplify TF32, which cuDNN's convolutions use unless told not to, to 4 % of the depth."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=SIZES)
def case(golden, request):
    """Model, image and the released depth."""
    name, max_depth, (height, width) = SIZES[request.param]
    model = create_model(f"sa2depth_{request.param}", min_depth=1e-3, max_depth=max_depth).eval()
    model.load_state_dict(from_official(golden.official_state(request.param)))
    normalised = golden.input(f"{name}/image", (1, 3, height, width))
    image = (normalised * model.pixel_std.double() + model.pixel_mean.double()).float()
    return model.cuda(), image.cuda(), torch.from_numpy(golden.load(name)["depth"]), request.param


def check(depth, expected, size):
    # as on the CPU: random weights amplify rounding, and in L two keys at a group's border may swap
    median, rms = {"t": (1e-4, 2e-3), "s": (2e-4, 5e-3), "l": (5e-4, 1e-2)}[size]
    assert_same_depth(depth, expected, beyond=1e-3, share=0.3, median=median, rms=rms)


def test_float32(case):
    model, image, expected, size = case
    with torch.no_grad():
        check(model(image).depth, expected, size)


def test_float32_prepared_and_replayed(case):
    model, image, expected, size = case
    fast = for_inference(model)
    with torch.inference_mode():
        graph, output = capture(lambda: fast(image), image.device)
        graph.replay()
        check(output.depth, expected, size)


@pytest.mark.parametrize("case", ["t"], indirect=True)  # a minute of compilation is enough
def test_float32_compiled(case):
    model, image, expected, size = case
    fast = for_inference(model)
    compile_layers(fast)
    with torch.no_grad():
        check(fast(image).depth, expected, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_torch_path(case, dtype):
    """Random weights amplify rounding: what half precision costs them, the torch path shows."""
    from sa2depth.ops import use_backend

    model, image, expected, size = case
    errors = {}
    for backend in ("torch", "auto"):
        with use_backend(backend), torch.no_grad(), torch.autocast("cuda", dtype):
            depth = model(image).depth.cpu()
        errors[backend] = float(((depth - expected).square().mean() / expected.square().mean()).sqrt())
    print(size, dtype, {name: f"{error:.4f}" for name, error in errors.items()})
    assert errors["auto"] < 1.5 * errors["torch"] + 0.005
