import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data.frame import Frame, read_frame
from sa2depth.data.io.depth_files import PngDepth
from sa2depth.data.io.images import photograph_size, read_mask, read_rgb
from sa2depth.errors import DataError


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(path, exif=exif)
    return path


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


def test_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path, recwarn):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([255, 7]))
    assert read_rgb(tmp_path / "a.png").tolist() == [[[0, 0, 0], [10, 20, 30]]]
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["1", "LA", "CMYK"])
def test_other_kinds_become_rgb(tmp_path, photo, mode):
    name = "a.tif" if mode == "CMYK" else "a.png"
    image = Image.fromarray(photo).convert(mode)
    image.save(tmp_path / name)
    assert np.array_equal(read_rgb(tmp_path / name), np.array(image.convert("RGB")))


def test_16_bit_colour_keeps_its_upper_half(tmp_path, photo):
    deep = photo.astype(np.uint16) * 256 + 200
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    assert np.array_equal(read_rgb(tmp_path / "a.png"), photo)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # the camera was held upright: turn by 90 degrees clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
    9: lambda a: a,  # an undefined value
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, photo, orientation):
    save(tmp_path / "a.png", photo, orientation)
    assert np.array_equal(read_rgb(tmp_path / "a.png"), UPRIGHT[orientation](photo))
    save(tmp_path / "m.png", photo[..., 0], orientation)
    assert np.array_equal(read_mask(tmp_path / "m.png"), UPRIGHT[orientation](photo[..., 0]) != 0)


def test_depth_that_was_not_turned_with_its_photograph_is_refused(tmp_path, photo):
    save(tmp_path / "a.jpg", photo, 6)
    cv2.imwrite(str(tmp_path / "d.png"), np.full((6, 9), 512, np.uint16))
    with pytest.raises(DataError, match=r"d\.png: expected the size of its image a\.jpg, 9x6, found 6x9"):
        read_frame(Frame(tmp_path / "a.jpg", tmp_path / "d.png", None, "a"))


@pytest.mark.parametrize("size", [(1, 9), (6, 1), (1, 1)])
def test_one_row_and_one_column(tmp_path, photo, size):
    photo = photo[: size[0], : size[1]]
    depth = photo[..., 0].astype(np.uint16) * 9 + 1
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(photo[..., 0]).save(tmp_path / "m.png")
    cv2.imwrite(str(tmp_path / "d.png"), depth)
    frame = Frame(tmp_path / "a.png", tmp_path / "d.png", None, "a", mask=tmp_path / "m.png")
    sample = read_frame(frame)
    assert np.array_equal(sample.image, photo)
    np.testing.assert_allclose(sample.depth, np.where(photo[..., 0] > 0, depth / 1000, 0), rtol=1e-6)


MASK = np.array([[0, 1, 255], [2, 0, 0]], np.uint8)


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB", "RGBA", "I;16", "I"])
def test_masks_of_any_kind_keep_what_is_not_zero(tmp_path, kind):
    image = Image.fromarray(MASK)
    if kind == "1":
        image = Image.fromarray(MASK != 0)
    if kind == "P":  # all entries are black: their numbers count, as in segmentations
        image.putpalette([0] * 768)
    if kind.startswith("I"):
        image = Image.fromarray(
            (MASK.astype(np.int32) * 256).astype(np.uint16 if kind == "I;16" else np.int32)
        )
    if kind.startswith("RGB"):
        image = image.convert(kind)
    assert image.mode == kind
    name = "m.tif" if kind == "I" else "m.png"
    image.save(tmp_path / name)
    mask = read_mask(tmp_path / name)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, MASK != 0)


@pytest.mark.parametrize("name", ["absent.png", "text.png", "cut.png"])
def test_bad_mask_names_its_file(tmp_path, name):
    (tmp_path / "text.png").write_text("not a picture")
    noise = np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(DataError, match=f"{name}: .*mask"):
        read_mask(tmp_path / name)


@pytest.mark.parametrize("kind", ["pillow", "opencv", "optimised"])
def test_16_bit_depth_reads_the_same_from_any_writer(tmp_path, kind, monkeypatch):
    depth = np.array([[0, 1], [2500, 65535]], np.uint16)
    if kind == "opencv":
        cv2.imwrite(str(tmp_path / "d.png"), depth)
    else:
        Image.fromarray(depth).save(tmp_path / "d.png", optimize=kind == "optimised")
    with Image.open(tmp_path / "d.png") as image:
        assert image.mode in ("I", "I;16")
    # Pillow calls such a file I or I;16 depending on its version: it must not matter
    monkeypatch.delattr(Image, "open")
    read = PngDepth(1000)(tmp_path / "d.png", (2, 2))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, [[0, 0.001], [2.5, 65.535]], rtol=1e-6)


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("I;16", np.uint16), ("F", np.float32)])
def test_depth_given_as_photograph_is_refused_by_its_mode(tmp_path, mode, dtype):
    Image.fromarray(np.full((2, 3), 2500, dtype)).save(tmp_path / "d.tif")
    with pytest.raises(DataError, match=rf"d\.tif: .*found 2x3 pixels of mode {mode}\. Is this a depth map"):
        read_rgb(tmp_path / "d.tif")


def test_scale_is_units_a_metre(tmp_path):
    cv2.imwrite(str(tmp_path / "d.png"), np.full((2, 2), 512, np.uint16))
    assert (PngDepth(256)(tmp_path / "d.png", (2, 2)) == 2.0).all()


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
        PngDepth(1000)(tmp_path / name, (6, 9))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_the_size_in_the_header_follows_the_orientation(name, orientation, photo, tmp_path):
    path = save(tmp_path / name, photo, orientation)
    assert photograph_size(path) == read_rgb(path).shape[:2]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_the_size_of_jpeg_and_png_is_known_without_decoding(name, photo, tmp_path, monkeypatch):
    path = save(tmp_path / name, photo, 6)
    monkeypatch.setattr("sa2depth.data.io.images.read_rgb", lambda path: pytest.fail("decoded"))
    assert photograph_size(path) == (9, 6)


@pytest.mark.parametrize("contents", [b"", b"noise", None])
def test_other_files_are_refused_as_by_the_reader(contents, tmp_path):
    path = tmp_path / "a.jpg"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(DataError) as expected:
        read_rgb(path)
    with pytest.raises(DataError) as found:
        photograph_size(path)
    assert str(found.value) == str(expected.value)
