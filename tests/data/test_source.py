import cv2
import numpy as np
import pytest

from sa2depth.data import nyu_labelled
from sa2depth.data.sample import Source
from sa2depth.data.source import FileSource
from sa2depth.errors import DataError


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
