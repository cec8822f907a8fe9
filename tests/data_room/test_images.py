import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data.images import read_depth, read_rgb
from sa2depth.errors import DataError


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_rgb_is_read_as_it_is(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    read = read_rgb(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert np.array_equal(read, photo)


def test_rgba_loses_its_transparency(tmp_path, photo):
    alpha = np.full((6, 9, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([photo, alpha], 2)).save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png"), photo)


def test_grey_becomes_three_equal_channels(tmp_path, photo):
    Image.fromarray(photo[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png"), np.repeat(photo[..., :1], 3, 2))


def test_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png").tolist() == [[[0, 0, 0], [10, 20, 30]]]


def test_exif_orientation_is_applied(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / "a.png"), np.rot90(photo, -1))


@pytest.mark.parametrize("kind", ["pillow", "opencv", "optimised"])
def test_16_bit_depth_reads_alike_whoever_wrote_it(tmp_path, kind):
    # Pillow calls such a file I or I;16, depending on its version
    depth = np.array([[0, 1], [2500, 65535]], np.uint16)
    if kind == "opencv":
        cv2.imwrite(str(tmp_path / "d.png"), depth)
    else:
        Image.fromarray(depth).save(tmp_path / "d.png", optimize=kind == "optimised")
    with Image.open(tmp_path / "d.png") as image:
        assert image.mode in ("I", "I;16")
    read = read_depth(tmp_path / "d.png", 1000.0)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, [[0, 0.001], [2.5, 65.535]], rtol=1e-6)


def test_scale_is_units_a_metre(tmp_path):
    cv2.imwrite(str(tmp_path / "d.png"), np.full((2, 2), 512, np.uint16))
    assert (read_depth(tmp_path / "d.png", 256.0) == 2.0).all()


@pytest.mark.parametrize("name", ["absent.jpg", "text.jpg", "cut.jpg", "deep.png"])
def test_bad_photograph_names_its_file(tmp_path, photo, name):
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(photo.repeat(50, 0).repeat(50, 1)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:3000])
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((2, 2), 512, np.uint16))
    with pytest.raises(DataError, match=name):
        read_rgb(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("absent.png", "No such file"),
        ("photo.png", "3 channel"),
        ("grey.png", "uint8"),
        ("depth.jpg", "another format"),
        ("cut.png", "ends early"),
    ],
)
def test_bad_depth_names_its_file_and_what_was_found(tmp_path, photo, name, found):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(photo[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(photo[..., 0]).save(tmp_path / "depth.jpg")
    noise = np.random.default_rng(0).integers(0, 65536, (50, 50), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "cut.png"), noise)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2500])
    with pytest.raises(DataError, match=f"{name}.*{found}"):
        read_depth(tmp_path / name, 1000.0)
