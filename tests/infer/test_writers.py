"""Read the files of a prediction back."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2depth.errors import ConfigError
from sa2depth.infer import FORMATS, Prediction, unique_names, write
from sa2depth.infer.writers import read_millimetres


@pytest.fixture
def prediction():
    depth = np.random.default_rng(0).uniform(0.1, 10, (37, 53)).astype(np.float32)
    return Prediction(depth, np.ones_like(depth), 0.1, 10.0, id="room")


def test_three_files_of_the_same_numbers(prediction, tmp_path):
    paths = write(prediction, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["room_depth.png", "room_depth_mm.png", "room_depth.npy"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
    metres = np.load(paths[2], allow_pickle=False)
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(metres, prediction.depth)
    assert np.abs(read_millimetres(paths[1]).astype(float) - metres).max() <= 0.0005 + 1e-6
    with Image.open(paths[0]) as color:
        assert color.size == (53, 37)
        assert color.mode == "RGB"


def test_millimetres_are_rounded_not_truncated(prediction, tmp_path):
    [path] = write(prediction, tmp_path, formats=["mm"])
    error = read_millimetres(path).astype(float) - prediction.depth
    assert abs(error.mean()) < 2e-5  # truncation would be -0.5 mm


def test_scale_stands_in_the_file(prediction, tmp_path):
    [path] = write(prediction, tmp_path, formats=["mm"])
    with Image.open(path) as image:
        assert image.mode.startswith("I;16")
        assert image.text["Depth-Unit"] == "millimetre"
        assert float(image.text["Depth-Scale"]) == 0.001
        assert "sa2depth" in image.text["Software"]


def test_far_and_broken_pixels_are_counted(tmp_path, caplog):
    depth = np.array([[65.5354, 65.536, 80.0], [np.nan, np.inf, 1.0]], np.float32)
    prediction = Prediction(depth, np.ones_like(depth), 0.1, 80.0, id="street")
    with caplog.at_level(logging.WARNING, logger="sa2depth"):
        [path] = write(prediction, tmp_path, formats=["mm"])
    with Image.open(path) as image:
        assert np.array(image).tolist() == [[65535, 65535, 65535], [0, 0, 1000]]
    assert "2 pixels beyond 65.535 m" in caplog.text
    assert "2 pixels are NaN or infinite" in caplog.text


def test_colors_have_a_fixed_metric_range(tmp_path):
    def colors(depth, name, **options):
        array = np.asarray(depth, np.float32)
        prediction = Prediction(array, np.ones_like(array), 0.1, 10.0, id=name)
        [path] = write(prediction, tmp_path, formats=["color"], **options)
        with Image.open(path) as image:
            return np.array(image), dict(image.text)

    one, notes = colors([[1, 2, 9]], "one")
    other, _ = colors([[2, 2, 2]], "other")
    assert notes["Depth-Range"] == "0.1 10"
    assert one[0, 1].tolist() == other[0, 0].tolist()
    assert one[0, 0].tolist() != one[0, 2].tolist()
    near, notes = colors([[1, 2, 9]], "near", depth_range=(1, 3))
    assert notes["Depth-Range"] == "1 3"
    assert near[0, 1].tolist() != one[0, 1].tolist()
    magma, _ = colors([[1, 2, 9]], "magma", colormap="magma")
    assert magma[0, 1].tolist() != one[0, 1].tolist()


def test_options_that_cannot_mean_anything(prediction, tmp_path):
    with pytest.raises(ConfigError, match=r"color, mm, npy, not exr"):
        write(prediction, tmp_path, formats=["npy", "exr"])
    with pytest.raises(ConfigError, match="not none"):
        write(prediction, tmp_path, formats=[])
    with pytest.raises(ConfigError, match="from near to far"):
        write(prediction, tmp_path, formats=["color"], depth_range=(5, 5))
    with pytest.raises(ConfigError, match="colour map 'beige'"):
        write(prediction, tmp_path, formats=["color"], colormap="beige")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_nothing(prediction, tmp_path, monkeypatch):
    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write(prediction, tmp_path, formats=["mm"])
    assert list(tmp_path.iterdir()) == []


def test_all_formats_are_written_by_default():
    assert list(FORMATS) == ["color", "mm", "npy"]


def test_inputs_of_one_name_do_not_meet():
    paths = [Path(name) for name in ("a/x.jpg", "b/x.png", "b/X.jpg", "c/y.jpg", "y2/b_x.gif", "b/x.webp")]
    names = unique_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert names[3] == "y"
    assert names[0] == "a_x"
    assert unique_names([Path("x.jpg"), Path("x.png")]) == ["x", "x_2"]
