"""Depth maps from scans, compared with a plain loop and with KITTI's own projection."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.sets.kitti.calibration import scanner_to_image
from sa2depth.data.sets.kitti.velodyne import VelodyneDepth, project, read_scan
from sa2depth.errors import DataError

SAMPLES = Path(__file__).parents[5] / "shared" / "data" / "samples" / "kitti"
DRIVE = "2011_09_26_drive_0001_sync"
# The scanner has the camera's axes here (x right, y down, z forward): only the projection matters.
MATRIX = np.array([[10.0, 0, 4, 0], [0, 10, 3, 0], [0, 0, 1, 0]])


def points(*rows):
    return np.array([(*row, 0.5) for row in rows], np.float32).reshape(-1, 4)


def test_a_point_falls_on_the_nearest_pixel_centre():
    depth = project(points((0.0, 0.0, 5.0), (0.24, 0.26, 5.0)), MATRIX, (7, 9))
    assert depth[3, 4] == 5  # the optical axis is pixel (4, 3)
    # 0.48 and 0.52 pixels off the axis
    assert np.count_nonzero(depth) == 2
    assert depth[4, 4] == 5


def test_the_nearest_point_wins_whatever_the_order():
    cloud = points((0, 0, 9), (0, 0, 2), (0, 0, 5))
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        assert project(cloud[order], MATRIX, (7, 9))[3, 4] == 2


def test_points_behind_or_beside_the_camera_are_left_out():
    cloud = points((0, 0, -5), (0, 0, 0), (100, 0, 5), (0, -100, 5), (1e9, 1e9, 1e-9))
    assert not project(cloud, MATRIX, (7, 9)).any()
    assert project(points(), MATRIX, (7, 9)).shape == (7, 9)


def test_edges_of_the_image():
    """Pixel centres are whole numbers, so the image reaches half a pixel beyond the outermost."""
    for u, v, seen in ((-0.4, 0, True), (-0.6, 0, False), (8.4, 6.4, True), (8.6, 6, False), (8, 6.6, False)):
        x, y = (u - 4) / 10, (v - 3) / 10
        assert project(points((x, y, 1.0)), MATRIX, (7, 9)).any() == seen, (u, v)


@given(st.integers(0, 2**32 - 1))
def test_against_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    cloud = rng.uniform((-4, -3, -1, 0), (4, 3, 8, 1), (60, 4)).astype(np.float32)
    matrix = MATRIX + rng.normal(0, 0.05, (3, 4))
    expected = np.zeros((7, 9))
    for x, y, z, _ in cloud.astype(np.float64):
        u, v, depth = matrix @ (x, y, z, 1)
        if depth <= 0:
            continue
        column, row = int(np.floor(u / depth + 0.5)), int(np.floor(v / depth + 0.5))
        if 0 <= row < 7 and 0 <= column < 9 and (not expected[row, column] or depth < expected[row, column]):
            expected[row, column] = depth
    np.testing.assert_allclose(project(cloud, matrix, (7, 9)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "found 0 bytes"),
        (b"x" * 30, "found 30 bytes"),
        (np.array([1, np.nan, 2, 0], "<f4").tobytes(), "finite"),
    ],
)
def test_broken_scans_are_named(tmp_path, data, complaint):
    path = tmp_path / "0000000005.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=complaint) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=r"missing\.bin: cannot read"):
        VelodyneDepth.of(MATRIX)(tmp_path / "missing.bin", (7, 9))


@pytest.fixture(scope="module")
def genuine():
    """The sample's scan projected here, KITTI's projection of it, and the annotated map."""
    listing = kitti.eigen(SAMPLES, truth="velodyne")
    frame = next(frame for frame in listing.frames if frame.id == f"{DRIVE}/image_02/0000000005")
    official, annotated = (
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) / 256
        for path in (
            SAMPLES / f"data_depth_velodyne/{DRIVE}/proj_depth/velodyne_raw/image_02/0000000005.png",
            SAMPLES / f"data_depth_annotated/{DRIVE}/proj_depth/groundtruth/image_02/0000000005.png",
        )
    )
    return frame.decode(frame.depth, official.shape), official, annotated


@pytest.mark.real_data
def test_genuine_scan_against_the_official_projection(genuine):
    """The official projection undoes the car's motion during the scan: the two are similar, not equal."""
    depth, official, _ = genuine
    assert np.count_nonzero(depth) == pytest.approx(np.count_nonzero(official), rel=0.01)
    shared = (depth > 0) & (official > 0)
    difference = (depth - official)[shared]
    assert np.count_nonzero(shared) / np.count_nonzero(official) > 0.32
    assert abs(np.median(difference)) < 0.005
    assert np.median(np.abs(difference)) < 0.04
    # most official points have one of the same depth at most two pixels away
    around = np.stack([np.roll(depth, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)])
    near = (np.abs(around - official) < 0.03 * official).any(0)
    assert near[official > 0].mean() > 0.96


@pytest.mark.real_data
def test_no_other_rounding_fits_the_official_projection_as_well(genuine):
    """A convention that is a pixel or half a pixel off agrees in far fewer pixels."""
    _, official, _ = genuine
    cloud = read_scan(SAMPLES / f"raw/2011_09_26/{DRIVE}/velodyne_points/data/0000000005.bin")
    matrix = scanner_to_image(SAMPLES / "raw" / "2011_09_26", 2)

    def share(shift):
        moved = np.array([[1, 0, shift], [0, 1, shift], [0, 0, 1]]) @ matrix
        depth = project(cloud, moved, official.shape)
        return np.count_nonzero((depth > 0) & (official > 0)) / np.count_nonzero(official)

    own = share(0)
    assert own > max(1.4 * share(shift) for shift in (-1, -0.5, 0.5, 1))


@pytest.mark.real_data
def test_genuine_scan_against_the_annotated_map(genuine):
    depth, _, annotated = genuine
    shared = (depth > 0) & (annotated > 0)
    error = np.abs(depth - annotated)[shared] / annotated[shared]
    assert np.count_nonzero(shared) / np.count_nonzero(depth) > 0.4
    assert np.median(error) < 0.006
    assert (error < 0.05).mean() > 0.97
