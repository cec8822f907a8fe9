"""The size of a photograph from the head of its file is the size at which it is read."""

import numpy as np
import pytest
from PIL import Image

from sa2depth.data.io import images
from sa2depth.data.io.images import photograph_size, read_rgb
from sa2depth.errors import DataError

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_every_orientation(name, orientation, tmp_path):
    path = save(tmp_path / name, orientation)
    assert photograph_size(path) == read_rgb(path).shape[:2]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_jpeg_and_png_are_not_decoded(name, tmp_path, monkeypatch):
    path = save(tmp_path / name, 6)
    monkeypatch.setattr(images, "read_rgb", lambda path: pytest.fail("decoded"))
    assert photograph_size(path) == (9, 6)


@pytest.mark.parametrize("contents", [b"", b"noise", None])
def test_what_is_no_photograph_is_refused_as_by_its_reader(contents, tmp_path):
    path = tmp_path / "a.jpg"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(DataError) as expected:
        read_rgb(path)
    with pytest.raises(DataError) as found:
        photograph_size(path)
    assert str(found.value) == str(expected.value)
