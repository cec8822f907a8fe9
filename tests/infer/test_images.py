"""Every kind of image becomes the same tensor."""

import numpy as np
import pytest
import torch
from PIL import Image

from sa2depth.errors import DataError, ShapeError
from sa2depth.infer import to_tensor


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)


def expected(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_all_kinds_give_the_same(pixels, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [
        path,
        str(path),
        Image.open(path),
        pixels,
        pixels.astype(np.float32) / 255,
        pixels.astype(np.float64) / 255,
        pixels[:, ::-1][:, ::-1],
        np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]),
        tensor,
        tensor[None],
        tensor.float() / 255,
        tensor.double()[None] / 255,
    ]
    for kind in kinds:
        result = to_tensor(kind)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected(pixels), rtol=0, atol=1e-6)


def test_half_precision_tensor(pixels):
    half = to_tensor(expected(pixels).half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected(pixels), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_modes_become_rgb(pixels, mode, tmp_path):
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    result = to_tensor(path)
    assert result.shape == (1, 3, 13, 21)
    torch.testing.assert_close(result, expected(np.array(Image.open(path).convert("RGB"))))
    if mode in ("L", "LA", "1"):
        assert torch.equal(result[:, 0], result[:, 1])
        assert torch.equal(result[:, 0], result[:, 2])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey(suffix, tmp_path):
    grey = np.linspace(0, 65535, 13 * 21).reshape(13, 21).astype(np.uint16)
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(grey).save(path)
    wanted = torch.from_numpy(grey.astype(np.float32) / 65535).expand(1, 3, -1, -1)
    torch.testing.assert_close(to_tensor(path), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(to_tensor(grey), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(pixels, orientation, tmp_path):
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    turns = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(pixels, 1),
    }  # fmt: skip
    torch.testing.assert_close(to_tensor(path), expected(turns[orientation].copy()), rtol=0, atol=1e-6)


def test_files_that_are_no_pictures(tmp_path):
    with pytest.raises(DataError, match=r"absent\.png: there is no such photograph"):
        to_tensor(tmp_path / "absent.png")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    with pytest.raises(DataError, match=r"broken\.jpg: expected a readable photograph"):
        to_tensor(broken)


def test_truncated_photo_is_refused(pixels, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.tile(pixels, (20, 20, 1))).save(path, quality=95)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        to_tensor(path)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((3, 40, 50, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.int64),
        np.full((4, 5, 3), 200.0),
        np.full((4, 5, 3), -1.0),
        np.full((4, 5, 3), np.nan),
        torch.zeros(4, 5),
        torch.zeros(4, 5, 3),
        torch.zeros(2, 3, 4, 5),
        torch.zeros(3, 4, 5, dtype=torch.int64),
        torch.full((3, 4, 5), 255.0),
        torch.full((3, 4, 5), torch.nan),
        7,
        Image.fromarray(np.zeros((4, 5), np.float32)),
    ],
)
def test_what_is_no_image(image):
    with pytest.raises(ShapeError):
        to_tensor(image)
