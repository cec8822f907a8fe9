"""The network sees the right pixels, and its prediction comes back onto the same pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sa2depth.errors import ShapeError
from sa2depth.metrics import Protocol, cut_frame, flip_average, load_protocol, predict_frame

OPEN = {"name": "open", "version": 1, "min_depth": 1e-3, "max_depth": 10.0}
POLICIES = {
    "pad": {"input": "pad"},
    "resize": {"input": "resize", "input_size": (64, 128)},
    "resize to no multiple": {"input": "resize", "input_size": (50, 70)},
    "max_side": {"input": "max_side", "max_side": 64},
    "max_side that is not reached": {"input": "max_side", "max_side": 500},
}


def protocol(**changes):
    return Protocol(**{**OPEN, **changes})


def gradient(height, width, across=0.02, down=0.03):
    """``(1,3,H,W)`` that grows linearly to the right and downwards."""
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return (1 + across * columns + down * rows).expand(1, 3, height, width)


def first(picture):
    """A network that returns the first channel of its input."""
    return picture[:, :1]


def prepared(image, rules, multiple=32):
    """The input of a network, and a function that brings its output back to the frame."""
    seen = []

    def network(shown):
        seen.append(shown)
        return first(shown)

    rules = replace(rules, flip=False)
    predict_frame(network, image, rules, multiple)
    return seen[0], lambda answer: predict_frame(lambda _: answer, image, rules, multiple)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(64, 96), (37, 83), (83, 37), (100, 200)])
def test_a_gradient_comes_back(policy, size):
    image = gradient(*size)
    rules = protocol(**POLICIES[policy])
    seen, undo = prepared(image, rules)
    assert seen.shape[-2] % 32 == seen.shape[-1] % 32 == 0
    back = undo(first(seen))
    assert back.shape == (1, 1, *size)
    edge = 1 + max(size) // min(
        seen.shape[-2:]
    )  # bilinear resizing cannot extrapolate beyond the outer pixels
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    resized = "resize" in policy or (policy == "max_side" and max(size) > 64)
    # half a pixel of displacement would be 0.01 to the right and 0.015 downwards
    atol = 4e-3 if resized else 0
    torch.testing.assert_close(back[inside], image[:, :1][inside], rtol=0, atol=atol)
    torch.testing.assert_close(back.mean(), image.mean(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_mirroring_the_image_mirrors_the_prediction(policy):
    """No policy favours a side if the network does not."""
    image = torch.rand(2, 3, 45, 71, dtype=torch.float64)
    for flip in (False, True):
        rules = protocol(**POLICIES[policy], flip=flip)
        forth = predict_frame(first, image, rules)
        back = predict_frame(first, image.flip(-1), rules).flip(-1)
        torch.testing.assert_close(forth, back)


def test_as_is_refuses_other_multiples():
    image = gradient(64, 96)
    seen, undo = prepared(image, protocol())
    assert torch.equal(seen, image)
    assert torch.equal(undo(first(seen)), image[:, :1])
    for size in ((65, 96), (64, 95), (375, 1242)):
        with pytest.raises(
            ShapeError, match=rf"{size[0]}x{size[1]} frame .* multiples of 32: use protocol.input=pad"
        ):
            prepared(gradient(*size), protocol())
    assert prepared(gradient(65, 95), protocol(), multiple=5)[0].shape == (1, 3, 65, 95)
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\)"):
        prepared(image[0], protocol())


def test_padding_lies_to_the_right_and_below():
    image = torch.rand(2, 3, 40, 50)
    seen, undo = prepared(image, protocol(input="pad"))
    assert seen.shape == (2, 3, 64, 64)
    assert torch.equal(seen[..., :40, :50], image)
    assert torch.equal(seen[..., :40, 50:], image[..., :, 35:49].flip(-1))
    assert torch.equal(undo(first(seen)), image[:, :1])


def test_max_side_keeps_the_aspect_and_never_enlarges():
    rules = protocol(input="max_side", max_side=64)
    seen, _ = prepared(gradient(108, 192), rules)
    assert seen.shape == (1, 3, 64, 64)  # 36x64, padded
    shrunk = seen[0, 0, :36]
    # the centre of the small pixel (10, 20) lies at (10.5, 20.5) * 3 - 0.5
    assert shrunk[10, 20].item() == pytest.approx(1 + 0.02 * 61 + 0.03 * 31, rel=1e-9)
    seen, _ = prepared(gradient(20, 30), rules)
    assert torch.equal(seen[..., :20, :30], gradient(20, 30))


def test_resizing_agrees_with_opencv():
    """The released SUN RGB-D script resizes with cv2, which does not smooth."""
    import cv2

    image = np.random.RandomState(0).rand(53, 73, 3).astype(np.float32)
    for size in ((64, 96), (32, 32)):
        seen, _ = prepared(
            torch.from_numpy(image).permute(2, 0, 1)[None], protocol(input="resize", input_size=size)
        )
        expected = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(seen[0].permute(1, 2, 0).numpy(), expected, atol=2e-5)


def test_pixels_move_as_bilinear_resizing_says():
    """A known pixel of the network's output lands where geometry puts it, with the half-pixel convention."""
    rules = protocol(input="resize", input_size=(32, 64))
    seen, undo = prepared(torch.zeros(1, 3, 64, 128), rules)
    answer = torch.zeros(1, 1, *seen.shape[-2:])
    answer[0, 0, 10, 20] = 16.0
    back = undo(answer)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    centre = [float((axis * back).sum() / back.sum()) for axis in (rows, columns)]
    assert centre == pytest.approx([20.5, 40.5])  # twice (10.5, 20.5), less half a pixel
    assert back.max() == 9.0  # 16 * 0.75 * 0.75


@pytest.mark.parametrize("size", [(370, 1224), (374, 1238), (375, 1242), (376, 1241), (352, 1216)])
def test_bottom_centre_window_of_kitti(size):
    rules = load_protocol("kitti_eigen_garg_full")
    image = gradient(*size)
    seen, undo = prepared(image, rules)
    assert seen.shape == (1, 3, 352, 1216)
    top, left = size[0] - 352, (size[1] - 1216) // 2
    assert torch.equal(seen, image[..., top:, left : left + 1216])
    back = undo(first(seen))
    assert back.shape == (1, 1, *size)
    box = rules.crop_box(*size)
    scored = (..., slice(box[0], box[1]), slice(box[2], box[3]))
    assert torch.equal(back[scored], image[:, :1][scored])
    # outside the window the border is repeated
    assert torch.equal(back[..., : top + 1, :], back[..., top : top + 1, :].expand(1, 1, top + 1, -1))
    assert torch.equal(back[..., :left], back[..., left : left + 1].expand(1, 1, -1, left))
    with pytest.raises(ShapeError, match="network's window"):
        prepared(gradient(351, 1242), rules)


def test_frames_are_cut_from_the_bottom_centre_and_only_once():
    rules = load_protocol("kitti_eigen_garg")
    image = torch.rand(2, 3, 375, 1242)
    frame = cut_frame(image, rules)
    assert torch.equal(frame, image[..., 23:, 13:1229])
    assert cut_frame(frame, rules).shape == frame.shape
    assert torch.equal(cut_frame(image[0, 0], rules), frame[0, 0])
    seen, undo = prepared(image, rules)  # cuts too
    assert torch.equal(seen, frame)
    assert torch.equal(undo(first(seen)), frame[:, :1])
    assert cut_frame(image, protocol()) is not None
    assert torch.equal(cut_frame(image, protocol()), image)
    with pytest.raises(ShapeError, match="the frame is 352x1216"):
        cut_frame(image[..., :300, :], rules)


def test_frame_and_policy_together():
    rules = protocol(frame=(40, 60), input="resize", input_size=(32, 64))
    image = gradient(64, 91)
    depth = predict_frame(first, image, rules)
    assert depth.shape == (1, 1, 40, 60)
    expected = image[:, :1, 24:, 15:75]
    torch.testing.assert_close(depth[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=0, atol=1e-9)


def test_flip_averaging_is_that_of_the_prediction_without_padding():
    image = torch.rand(1, 3, 40, 50, dtype=torch.float64)

    def slanted(picture):  # a network that is not symmetrical
        return picture[:, :1] + torch.linspace(0, 1, picture.shape[-1], dtype=torch.float64)

    depth = predict_frame(slanted, image, protocol(input="pad", flip=True))
    slope = torch.linspace(0, 1, 64, dtype=torch.float64)[:50]
    expected = flip_average(image[:, :1] + slope, image[:, :1] + slope.flip(-1))
    torch.testing.assert_close(depth, expected)
    plain = predict_frame(slanted, image, protocol(input="pad"))
    torch.testing.assert_close(plain, image[:, :1] + slope)


def test_answers_of_other_sizes_and_types():
    image = torch.rand(2, 3, 64, 96)
    rules = protocol()
    # a network whose output has a quarter of its input's size
    quarter = predict_frame(lambda x: torch.full((2, 1, 16, 24), 3.0), image, rules)
    assert torch.equal(quarter, torch.full((2, 1, 64, 96), 3.0))
    half = predict_frame(lambda x: x[:, :1].bfloat16(), image, protocol(input="resize", input_size=(32, 32)))
    assert half.dtype == torch.float32
    for answer in (torch.zeros(1, 1, 64, 96), torch.zeros(2, 64, 96)):
        with pytest.raises(ShapeError, match="the network turned"):
            predict_frame(lambda x, answer=answer: answer, image, rules)
