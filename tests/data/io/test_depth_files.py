import cv2
import numpy as np
import pytest

from sa2depth.data.io.depth_files import ArrayDepth, Limited, PngDepth, RotatedPngDepth
from sa2depth.errors import ConfigError, DataError

DEPTH = np.array([[0.0, 1.25, 2.5], [9.0, 0.5, 60.0]], np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint16, np.int32])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_of_any_number_type(tmp_path, dtype, suffix):
    path = tmp_path / f"d.{suffix}"
    stored = (DEPTH * 4).astype(dtype)
    np.save(path, stored) if suffix == "npy" else np.savez_compressed(path, anything=stored)
    read = ArrayDepth(4.0)(path, (2, 3))
    assert read.dtype == np.float32
    assert np.array_equal(read, DEPTH)


def test_an_array_with_leading_axes_of_one_and_one_row(tmp_path):
    np.save(tmp_path / "d.npy", DEPTH[None, :1, :, None])
    assert np.array_equal(ArrayDepth()(tmp_path / "d.npy", (1, 3)), DEPTH[:1])


def test_invalid_values_in_an_array_count_as_not_measured(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[np.nan, -1.0, np.inf, 2.0]]))
    assert ArrayDepth()(tmp_path / "d.npy", (1, 4)).tolist() == [[0, 0, 0, 2]]


def test_a_named_array_of_several(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, depth=DEPTH, other=DEPTH + 1)
    assert np.array_equal(ArrayDepth(key="depth")(path, (2, 3)), DEPTH)
    with pytest.raises(DataError, match=r"d\.npz: expected one array.*depth, other"):
        ArrayDepth()(path, (2, 3))
    with pytest.raises(DataError, match=r"expected an array 'z'.*depth, other"):
        ArrayDepth(key="z")(path, (2, 3))


@pytest.mark.parametrize("kind", ["absent", "text", "cut", "cube", "words", "objects"])
def test_bad_arrays_name_their_file(tmp_path, kind):
    path = tmp_path / f"{kind}.npy"
    if kind == "text":
        path.write_text("not an array")
    if kind == "cut":
        np.save(path, np.ones((50, 50)))
        path.write_bytes(path.read_bytes()[:300])
    if kind == "cube":
        np.save(path, np.ones((2, 3, 4)))
    if kind == "words":
        np.save(path, np.array([["a", "b"]]))
    if kind == "objects":  # unpickling an untrusted file would run its code
        np.save(path, np.array([[print]], object), allow_pickle=True)
    with pytest.raises(DataError, match=f"{kind}.npy"):
        ArrayDepth()(path, (2, 3))


def test_rotated_bits_of_sun(tmp_path):
    millimetres = np.array([[0, 1, 8191, 8192, 65535, 12345]], np.uint16)
    rotated = (millimetres << 3) | (millimetres >> 13)
    cv2.imwrite(str(tmp_path / "d.png"), rotated)
    read = RotatedPngDepth()(tmp_path / "d.png", (1, 6))
    np.testing.assert_allclose(read, millimetres / 1000, rtol=1e-6)


def test_values_outside_limits_become_0(tmp_path):
    np.save(tmp_path / "d.npy", DEPTH)
    read = Limited(ArrayDepth(), 0.6, 9.0)(tmp_path / "d.npy", (2, 3))
    assert read.tolist() == [[0, 1.25, 2.5], [9, 0, 0]]


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_is_a_positive_number(scale):
    with pytest.raises(ConfigError, match="depth scale"):
        PngDepth(scale)
    with pytest.raises(ConfigError, match="depth scale"):
        ArrayDepth(scale)
