"""Whole models return the numbers of the released code."""

import pytest
import torch

from agreement import assert_same_depth, assert_same_values
from sa2depth.models import create_model
from sa2depth.weights import from_official

pytestmark = pytest.mark.slow

SIZES = {
    "t": ("model_t_nyu", 10.0, (96, 128)),
    "s": ("model_s_nyu", 10.0, (96, 128)),
    "l": ("model_l_kitti", 80.0, (96, 160)),
}


def predict(golden, size, dtype):
    """Outputs and inner maps, and their expected values, by name."""
    name, max_depth, (height, width) = SIZES[size]
    model = create_model(f"sa2depth_{size}", min_depth=1e-3, max_depth=max_depth).to(dtype).eval()
    model.load_state_dict(from_official(golden.official_state(size)))
    # the golden images are already normalised
    normalised = golden.input(f"{name}/image", (1, 3, height, width))
    image = (normalised * model.pixel_std.double() + model.pixel_mean.double()).to(dtype)
    seen = {}
    model.decoder.blocks[3].register_forward_hook(lambda _, inputs, out: seen.update(f32=inputs[0], e32=out))
    model.depth_head.register_forward_hook(lambda _, __, logits: seen.update(logits_mean=logits.mean(dim=1)))
    with torch.no_grad():
        output = model(image)
    seen.update(depth=output.depth, bin_centers=output.bin_centers[:, :, None, None])
    return seen, golden.load(name)


@pytest.mark.parametrize(
    "size", ["t", pytest.param("s", marks=pytest.mark.slow), pytest.param("l", marks=pytest.mark.slow)]
)
def test_float64(golden, size):
    actual, expected = predict(golden, size, torch.float64)
    assert set(actual) == set(expected)
    for name, reference in expected.items():
        golden.check(actual[name], reference, 1e-6, name)


# Random weights amplify every rounding, and the heads see the whole image: one swap of ranks changes all depths a
# little and 7 to 10 % of the pixels of T and S by more than 1e-3. In L two keys at a group's border differ by 2.4e-5 at
# scores of 50, so float32 may swap them on any machine: in a simulation (tests/rounding.py, seed 2) this changes 75 %
# of the pixels by more than 1e-3, the median by 2.6e-3, the RMS by 7.4e-3.
@pytest.mark.parametrize(
    ("size", "median", "rms", "share"),
    [
        pytest.param("t", 1e-4, 2e-3, 0.3, marks=pytest.mark.code_path),
        pytest.param("s", 2e-4, 5e-3, 0.3, marks=pytest.mark.slow),
        pytest.param("l", 5e-3, 2e-2, 1.0, marks=pytest.mark.slow),
    ],
)
def test_float32(golden, size, median, rms, share):
    actual, expected = predict(golden, size, torch.float32)
    golden.check(actual["f32"], expected["f32"], 1e-5, "f32")  # of the encoder, which has no ranks
    assert_same_values(actual["e32"], expected["e32"], median=1e-5, rms=1e-3, what="e32")
    for name in ("depth", "bin_centers"):
        assert_same_depth(actual[name], expected[name], beyond=1e-3, share=share, median=median, rms=rms)
