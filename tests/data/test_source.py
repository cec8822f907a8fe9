"""Frames, listings and sources: files read, images left out, errors about missing files."""

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data import nyu_labelled
from sa2depth.data.frame import Frame, read_frame
from sa2depth.data.io.depth_files import MILLIMETRE_PNG, ArrayDepth, Limited
from sa2depth.data.listing import Listing
from sa2depth.data.sample import Source
from sa2depth.data.source import FileSource, from_listing, missing_files_allowed
from sa2depth.errors import DataError

DEPTH = np.array([[0.0, 1.25, 2.5], [9.0, 0.5, 60.0]], np.float32)


def test_file_source_reads_metres_and_camera(labelled_tree):
    root, ids = labelled_tree()
    source = nyu_labelled(root, ids=ids)
    assert isinstance(source, Source)
    assert len(source) == 6
    assert source.ids == ids
    sample = source[2]
    scene, number = ids[2].split("/")[1:]
    stored = cv2.imread(
        str(root / f"official_splits/train/{scene}/sync_depth_{number}.png"), cv2.IMREAD_UNCHANGED
    )
    np.testing.assert_allclose(sample.depth, stored / 1000.0, rtol=1e-6)
    assert sample.image.shape == (24, 32, 3)
    assert sample.intrinsics.tolist() == [[518.8579, 0, 325.5824], [0, 519.4696, 253.7362], [0, 0, 1]]
    assert sample.id == ids[2]


def test_description_says_that_it_is_a_handful(labelled_tree):
    root, ids = labelled_tree()
    assert "6 of 795 images" in nyu_labelled(root, ids=ids).describe()
    assert str(root) in nyu_labelled(root, ids=ids).describe()


def test_corrupt_image_fails_with_its_name(labelled_tree):
    root, ids = labelled_tree()
    source = nyu_labelled(root, ids=ids)
    source.frames[1].image.write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match=source.frames[1].image.name):
        source[1]
    source[0]


def test_depth_of_another_size_fails_with_both_sizes(labelled_tree):
    root, ids = labelled_tree()
    source = nyu_labelled(root, ids=ids)
    cv2.imwrite(str(source.frames[0].depth), np.ones((32, 24), np.uint16))
    with pytest.raises(DataError, match=r"24x32, found 32x24"):
        source[0]


def test_an_empty_source_is_an_error():
    with pytest.raises(DataError, match="empty"):
        FileSource([])


def test_frames_can_be_pickled():
    frame = Frame(Path("a.jpg"), Path("a.npz"), None, "a", decode=Limited(ArrayDepth(2.0, "k"), 1, 2))
    assert pickle.loads(pickle.dumps(frame)) == frame


@pytest.fixture
def frame(tmp_path):
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "d.png"), (DEPTH * 1000).astype(np.uint16))
    return Frame(tmp_path / "a.png", tmp_path / "d.png", None, "a", decode=MILLIMETRE_PNG)


def test_a_mask_takes_depth_away(frame, tmp_path):
    Image.fromarray(np.array([[0, 1, 255], [1, 0, 0]], np.uint8)).save(tmp_path / "m.png")
    depth = read_frame(replace(frame, mask=tmp_path / "m.png")).depth
    assert depth.tolist() == [[0, 1.25, 2.5], [9, 0, 0]]
    Image.fromarray(np.zeros((3, 2), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: expected the size of its image a\.png, 2x3, found 3x2"):
        read_frame(replace(frame, mask=tmp_path / "m.png"))


def test_the_camera_comes_from_its_file_or_is_unknown(frame, tmp_path):
    assert np.isnan(read_frame(frame).intrinsics[0, 0])
    path = tmp_path / "k.txt"
    path.write_text("520.5 0 277.9\r\n0 521 215\r\n0 0 1\r\n")
    matrix = read_frame(replace(frame, intrinsics_file=path)).intrinsics
    assert matrix.tolist() == [[520.5, 0, 277.9], [0, 521, 215], [0, 0, 1]]
    for text in ("", "1 2 3", "a b c", "0 0 0 0 0 0 0 0 1"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"k\.txt: expected the nine numbers"):
            read_frame(replace(frame, intrinsics_file=path))
    path.unlink()
    with pytest.raises(DataError, match="cannot read this camera matrix"):
        read_frame(replace(frame, intrinsics_file=path))


def test_images_without_truth_are_left_out_and_counted(frame, tmp_path):
    bare = replace(frame, id="b", depth=None)
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
    frames = (replace(frame, mask=tmp_path / "m.png", intrinsics_file=tmp_path / "k.txt"),)
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
    with pytest.raises(DataError, match="1 frames are listed, expected 2"):
        Listing("things", tmp_path, (frame,), "", expected=2)


def test_a_source_prepares_what_it_reads(frame, tmp_path):
    listing = Listing("things", tmp_path, (frame,), "")

    def cut(sample):
        return type(sample)(sample.image[:1], sample.depth[:1], sample.intrinsics, sample.id)

    assert from_listing(listing, prepare=cut)[0].depth.shape == (1, 3)
