"""Whole models return the numbers of the released code."""

import pytest
import torch

from sa2depth.models import create_model
from sa2depth.weights.official import from_official

SIZES = {
    "t": ("model_t_nyu", 10.0, (96, 128), 2e-4),
    "s": ("model_s_nyu", 10.0, (96, 128), 2e-4),
    "l": ("model_l_kitti", 80.0, (96, 160), 2e-3),
}


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        pytest.param("t", torch.float64),
        pytest.param("t", torch.float32),
        pytest.param("s", torch.float64, marks=pytest.mark.slow),
        pytest.param("s", torch.float32, marks=pytest.mark.slow),
        pytest.param("l", torch.float32, marks=pytest.mark.slow),
        pytest.param("l", torch.float64, marks=pytest.mark.slow),
    ],
)
def test_model(golden, size, dtype):
    name, max_depth, (height, width), metres = SIZES[size]
    expected = golden.load(name)
    model = create_model(f"sa2depth_{size}", min_depth=1e-3, max_depth=max_depth).to(dtype).eval()
    model.load_state_dict(from_official(golden.official_state(size)))
    seen = {}
    model.decoder.blocks[3].register_forward_hook(lambda _, inputs, out: seen.update(f32=inputs[0], e32=out))
    # the golden images are already normalised
    normalised = golden.input(f"{name}/image", (1, 3, height, width), dtype)
    image = normalised * model.pixel_std + model.pixel_mean
    with torch.no_grad():
        output = model(image)
        logits, _ = model.predict_bins(image)
    double = dtype == torch.float64
    golden.check(seen["f32"], expected["f32"], 1e-6 if double else 1e-4, "f32")
    golden.check(seen["e32"], expected["e32"], 1e-6 if double else 1e-3, "e32")
    golden.check(logits.mean(dim=1), expected["logits_mean"], 1e-5 if double else 1e-2, "logits_mean")
    depth_error = (output.depth - torch.from_numpy(expected["depth"])).abs().max()
    bins_error = (output.bin_centers - torch.from_numpy(expected["bin_centers"])[:, :, 0, 0]).abs().max()
    print(size, dtype, float(depth_error), float(bins_error))
    assert depth_error < (1e-6 * max_depth if double else metres)
    assert bins_error < (1e-6 * max_depth if double else metres)
