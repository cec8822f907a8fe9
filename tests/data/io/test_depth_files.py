import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data.frame import Frame, read_frame
from sa2depth.data.io.depth_files import MILLIMETRE_PNG, ArrayDepth, Limited, PngDepth, RotatedPngDepth
from sa2depth.data.listing import Listing
from sa2depth.data.source import from_listing, missing_files_allowed
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


def test_what_is_no_depth_in_an_array_counts_as_not_measured(tmp_path):
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
    if kind == "objects":  # unpickling a stranger's file would run what it says
        np.save(path, np.array([[print]], object), allow_pickle=True)
    with pytest.raises(DataError, match=f"{kind}.npy"):
        ArrayDepth()(path, (2, 3))


def test_rotated_bits_of_sun(tmp_path):
    millimetres = np.array([[0, 1, 8191, 8192, 65535, 12345]], np.uint16)
    rotated = (millimetres << 3) | (millimetres >> 13)
    cv2.imwrite(str(tmp_path / "d.png"), rotated)
    read = RotatedPngDepth()(tmp_path / "d.png", (1, 6))
    np.testing.assert_allclose(read, millimetres / 1000, rtol=1e-6)


def test_limits_forget_what_lies_outside(tmp_path):
    np.save(tmp_path / "d.npy", DEPTH)
    read = Limited(ArrayDepth(), 0.6, 9.0)(tmp_path / "d.npy", (2, 3))
    assert read.tolist() == [[0, 1.25, 2.5], [9, 0, 0]]


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_is_a_positive_number(scale):
    with pytest.raises(ConfigError, match="depth scale"):
        PngDepth(scale)
    with pytest.raises(ConfigError, match="depth scale"):
        ArrayDepth(scale)


def test_frames_travel_to_loader_processes():
    frame = Frame(Path("a.jpg"), Path("a.npz"), None, "a", decode=Limited(ArrayDepth(2.0, "k"), 1, 2))
    assert pickle.loads(pickle.dumps(frame)) == frame


@pytest.fixture
def frame(tmp_path):
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "d.png"), (DEPTH * 1000).astype(np.uint16))
    return Frame(tmp_path / "a.png", tmp_path / "d.png", None, "a", decode=MILLIMETRE_PNG)


def with_(frame, **changes):
    return Frame(**{**{key: getattr(frame, key) for key in frame.__dataclass_fields__}, **changes})


def test_a_mask_takes_depth_away(frame, tmp_path):
    Image.fromarray(np.array([[0, 1, 255], [1, 0, 0]], np.uint8)).save(tmp_path / "m.png")
    depth = read_frame(with_(frame, mask=tmp_path / "m.png")).depth
    assert depth.tolist() == [[0, 1.25, 2.5], [9, 0, 0]]
    Image.fromarray(np.zeros((3, 2), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: expected the size of its image a\.png, 2x3, found 3x2"):
        read_frame(with_(frame, mask=tmp_path / "m.png"))


def test_the_camera_comes_from_its_file_or_is_unknown(frame, tmp_path):
    assert np.isnan(read_frame(frame).intrinsics[0, 0])
    path = tmp_path / "k.txt"
    path.write_text("520.5 0 277.9\r\n0 521 215\r\n0 0 1\r\n")
    matrix = read_frame(with_(frame, intrinsics_file=path)).intrinsics
    assert matrix.tolist() == [[520.5, 0, 277.9], [0, 521, 215], [0, 0, 1]]
    for text in ("", "1 2 3", "a b c", "0 0 0 0 0 0 0 0 1"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"k\.txt: expected the nine numbers"):
            read_frame(with_(frame, intrinsics_file=path))
    path.unlink()
    with pytest.raises(DataError, match="cannot read this camera matrix"):
        read_frame(with_(frame, intrinsics_file=path))


def test_images_without_truth_are_left_out_and_counted(frame, tmp_path):
    bare = with_(frame, id="b", depth=None)
    listing = Listing("things", tmp_path, (frame, bare), "get them")
    assert listing.without_truth == ["b"]
    source = from_listing(listing)
    assert source.ids == ["a"]
    assert source.without_truth == 1
    assert "1 images, 1 place(s)" in source.describe()
    assert "1 more have no ground truth" in source.describe()
    kept = from_listing(listing, keep_without_truth=True)
    assert kept.ids == ["a", "b"]
    assert kept[1].depth is None
    with pytest.raises(DataError, match="none of 1 images has ground truth"):
        from_listing(Listing("things", tmp_path, (bare,), "get them"))


def test_every_file_of_a_frame_must_be_there(frame, tmp_path):
    frames = (with_(frame, mask=tmp_path / "m.png", intrinsics_file=tmp_path / "k.txt"),)
    with pytest.raises(DataError, match=r"2 of 4 files are missing(.|\n)*m\.png(.|\n)*k\.txt(.|\n)*get them"):
        from_listing(Listing("things", tmp_path, frames, "get them"))
    listing = Listing("things", tmp_path, frames, "get them")
    with missing_files_allowed():
        assert from_listing(listing).listing is listing
    with pytest.raises(DataError, match="are missing"):
        from_listing(listing)


def test_a_listing_refuses_double_ids_and_wrong_counts(frame, tmp_path):
    with pytest.raises(DataError, match="more than once, first 'a'"):
        Listing("things", tmp_path, (frame, frame), "")
    with pytest.raises(DataError, match="1 frames are listed, 2 belong"):
        Listing("things", tmp_path, (frame,), "", expected=2)


def test_a_source_prepares_what_it_reads(frame, tmp_path):
    listing = Listing("things", tmp_path, (frame,), "")

    def cut(sample):
        return type(sample)(sample.image[:1], sample.depth[:1], sample.intrinsics, sample.id)

    assert from_listing(listing, prepare=cut)[0].depth.shape == (1, 3)
