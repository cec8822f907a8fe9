"""KITTI Eigen: lists, layouts that users have on disk, cameras, and errors about missing files."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data import kitti_eigen, kitti_official
from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.sets.kitti.calibration import camera_intrinsics, read_calibration, scanner_to_image
from sa2depth.data.sets.kitti.recordings import KittiTree, validation_drives
from sa2depth.data.source import from_listing
from sa2depth.data.splits.selection import hold_out
from sa2depth.errors import DataError

SAMPLES = Path(__file__).parents[5] / "shared" / "data" / "samples" / "kitti"
TRAIN = "2011_09_26_drive_0001_sync"
# Both are in Eigen's test list, which reads faster; the benchmark has one for validation, one for training.
TEST, OTHER = "2011_09_26_drive_0002_sync", "2011_09_26_drive_0009_sync"
HEIGHT, WIDTH = 40, 60

LAYOUTS = {
    "merged": "kitti/{day}/{drive}",
    "drives below the root": "kitti/{drive}",
    "official archives": "kitti/data_depth_annotated/{part}/{drive}",
    "archives opened in the root": "kitti/{part}/{drive}",
    "BTS": "kitti/data_depth_annotated/{drive}",
    "elsewhere, archives": "depth/{part}/{drive}",
    "elsewhere, unpacked zip": "depth/data_depth_annotated/{part}/{drive}",
    "elsewhere, drives": "depth/{drive}",
    "elsewhere, days": "depth/{day}/{drive}",
}


def calibrate(day: Path, left=700.0, right=705.0):
    """Write the calibration of a scanner 0.25 m behind the camera that looks in the same direction."""
    day.mkdir(parents=True, exist_ok=True)
    projections = [
        f"P_rect_0{number}: {f} 0 {WIDTH / 2} {shift} 0 {f} {HEIGHT / 2} 0 0 0 1 0\n"
        for number, f, shift in ((2, left, 42.0), (3, right, -330.0))
    ]
    (day / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\nR_rect_00: 1 0 0 0 1 0 0 0 1\n" + "".join(projections)
    )
    (day / "calib_velo_to_cam.txt").write_text(
        "calib_time: 15-Mar-2012 11:37:16\nR: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -0.25\n"
    )


@pytest.fixture
def tree(tmp_path):
    """Write a few frames and return the root of the recordings."""

    def make(frames, layout="merged", suffix=".png", raw="", depth=True) -> Path:
        root = tmp_path / "kitti"
        for drive, camera, number in frames:
            day = root / raw / drive[:10]
            calibrate(day)
            images = day / drive / camera / "data"
            images.mkdir(parents=True, exist_ok=True)
            colour = 100 if camera == "image_02" else 200
            picture = np.full((HEIGHT, WIDTH, 3), colour, np.uint8)
            Image.fromarray(picture).save(images / f"{number:010d}{suffix}", quality=95)
            if depth:
                part = "val" if drive in validation_drives() else "train"
                place = tmp_path / LAYOUTS[layout].format(day=drive[:10], drive=drive, part=part)
                maps = place / "proj_depth" / "groundtruth" / camera
                maps.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(
                    str(maps / f"{number:010d}.png"), np.full((HEIGHT, WIDTH), 256 * number, np.uint16)
                )
        return root

    return make


def test_the_lists_share_no_drive(tmp_path):
    train, test = kitti.eigen(tmp_path), kitti.eigen(tmp_path, "test")
    assert f"{TEST}/image_02/0000000000" in test.without_truth
    assert not {frame.place for frame in train.frames} & {frame.place for frame in test.frames}
    assert [frame.id for frame in train.frames] == sorted(frame.id for frame in train.frames)


def test_the_held_out_drives(tmp_path):
    frames = kitti.eigen(tmp_path).frames
    fit, held_out = hold_out(frames, "fit", 10), hold_out(frames, "held_out", 10)
    assert len({frame.place for frame in held_out}) == 4
    assert len(held_out) == 2022
    # the held-out drives do not depend on the training cameras
    both = hold_out(kitti.eigen(tmp_path, camera="both").frames, "fit", 10)
    assert {frame.place for frame in both} == {frame.place for frame in fit}


@pytest.mark.parametrize("raw", ["", "raw"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotated_depth_is_found_in_every_layout(tree, tmp_path, layout, raw):
    root = tree([(OTHER, "image_02", 16), (TEST, "image_02", 6)], layout, raw=raw)
    options = {"depth_root": tmp_path / "depth"} if layout.startswith("elsewhere") else {}
    ids = [f"{OTHER}/image_02/0000000016", f"{TEST}/image_02/0000000006"]
    source = kitti_eigen(root, "test", ids=ids, **options)
    for sample, number in zip((source[0], source[1]), (16, 6), strict=True):
        assert sample.image.shape == (HEIGHT, WIDTH, 3)
        assert np.all(sample.depth == number)
    assert [source[0].id, source[1].id] == ids


def test_depth_below_the_root_is_not_taken_when_another_folder_is_named(tree, tmp_path):
    root = tree([(TEST, "image_02", 6)])
    with pytest.raises(DataError, match="1 of 2 files are missing"):
        kitti_eigen(root, "test", depth_root=tmp_path / "other", ids=[f"{TEST}/image_02/0000000006"])


def test_converted_images_are_found_and_png_comes_first(tree):
    root = tree([(TEST, "image_02", 6)], suffix=".jpg")
    ids = [f"{TEST}/image_02/0000000006"]
    assert kitti_eigen(root, "test", ids=ids).frames[0].image.suffix == ".jpg"
    tree([(TEST, "image_02", 6)])
    assert kitti_eigen(root, "test", ids=ids).frames[0].image.suffix == ".png"


def test_each_camera_has_its_own_files_and_intrinsics(tree):
    root = tree([(TRAIN, camera, 5) for camera in ("image_02", "image_03")])
    ids = [f"{TRAIN}/{camera}/0000000005" for camera in ("image_02", "image_03")]
    both = kitti.eigen(root, camera="both")  # the listing itself checks that it has 2 x 23,158 frames
    assert both.expected == 2 * 23158
    source = from_listing(both, ids=ids)
    left, right = source[0], source[1]
    assert (left.image[0, 0, 0], right.image[0, 0, 0]) == (100, 200)
    assert (left.intrinsics[0, 0], right.intrinsics[0, 0]) == (700, 705)
    assert left.intrinsics[0, 2] == WIDTH / 2
    assert kitti_eigen(root, camera="right", ids=ids[1:])[0].intrinsics[0, 0] == 705


def test_intrinsics_are_those_of_the_day(tree):
    other = "2011_09_28_drive_0001_sync"
    root = tree([(TRAIN, "image_02", 5), (other, "image_02", 5)])
    calibrate(root / "2011_09_28", left=650.0)
    source = kitti_eigen(root, ids=[f"{drive}/image_02/0000000005" for drive in (TRAIN, other)])
    assert [source[number].intrinsics[0, 0] for number in (0, 1)] == [700, 650]


def test_a_missing_calibration_is_an_error_with_its_name(tree):
    root = tree([(TEST, "image_02", 6)])
    (root / "2011_09_26" / "calib_cam_to_cam.txt").unlink()
    told = r"(?s)1 of 3 files are missing.*2011_09_26/calib_cam_to_cam\.txt.*DATE_calib\.zip"
    with pytest.raises(DataError, match=told):
        kitti_eigen(root, "test", ids=[f"{TEST}/image_02/0000000006"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected lines such as"),
        ("P_rect_02: 1 2 3\n", "expected an entry 'P_rect_02' of 12 numbers, found 3 numbers"),
        ("P_rect_00: 1 2 3\n", "found no such entry"),
        ("P_rect_02: 0 0 1 0 0 7 1 0 0 0 1 0\n", "positive focal lengths"),
        ("P_rect_02: nan 0 1 0 0 7 1 0 0 0 1 0\n", "finite"),
    ],
)
def test_a_broken_calibration_is_an_error_at_once(tree, text, complaint):
    root = tree([(TEST, "image_02", 6)])
    (root / "2011_09_26" / "calib_cam_to_cam.txt").write_text(text)
    with pytest.raises(DataError, match=rf"2011_09_26/calib_cam_to_cam\.txt: .*{complaint}"):
        kitti.eigen(root, "test")


def test_an_annotated_map_that_should_be_there_is_missed(tree):
    """The count of 652 comes from the list, never from the disk."""
    root = tree([(TEST, "image_02", 6), (TEST, "image_02", 9)], "official archives")
    folder = root / "data_depth_annotated" / "val" / TEST / "proj_depth" / "groundtruth" / "image_02"
    (folder / "0000000009.png").unlink()
    told = rf"(?s)1 of 4 files are missing.*data_depth_annotated/val/{TEST}/.*/image_02/0000000009\.png"
    with pytest.raises(DataError, match=told):
        kitti_eigen(root, "test", ids=[f"{TEST}/image_02/{number:010d}" for number in (6, 9)])


def test_frames_without_truth_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("sa2depth.data.listing.Listing.require", lambda *_: None)
    source = kitti_eigen(tmp_path, "test")
    assert (len(source), source.without_truth) == (652, 45)
    assert "45 more have no ground truth" in source.describe()


def scan(root: Path, drive: str, number: int):
    """Two points in the centre of the left camera, which is 6 cm left of camera 0, and one behind the scanner."""
    folder = root / drive[:10] / drive / "velodyne_points" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    points = np.array([[10.25, 0.06, 0, 1], [20.25, 0.06, 0, 1], [-5, 0.06, 0, 1]], "<f4")
    points.tofile(folder / f"{number:010d}.bin")


def test_truth_from_scans(tree):
    root = tree([(TEST, "image_02", 6)], depth=False)
    scan(root, TEST, 6)
    sample = kitti_eigen(root, "test", truth="velodyne", ids=[f"{TEST}/image_02/0000000006"])[0]
    assert sample.depth.shape == (HEIGHT, WIDTH)
    assert np.count_nonzero(sample.depth) == 1
    assert sample.depth[HEIGHT // 2, WIDTH // 2] == pytest.approx(10.0)


def test_truth_from_scans_for_frames_that_have_no_annotation(tree):
    root = tree([(TEST, "image_02", 0), (TEST, "image_02", 6)])
    scan(root, TEST, 0)
    names = [f"{TEST}/image_02/{number:010d}" for number in (0, 6)]
    listing = kitti.eigen(root, "test", truth="annotated_or_velodyne")
    assert listing.without_truth == []
    frames = {frame.id: frame for frame in listing.frames}
    assert [frames[name].depth.suffix for name in names] == [".bin", ".png"]
    assert pickle.loads(pickle.dumps(frames[names[0]])) == frames[names[0]]
    source = kitti_eigen(root, "test", truth="annotated_or_velodyne", ids=names)
    assert source[0].depth.max() == pytest.approx(10.0)
    assert source[1].depth.max() == 6
    assert sum(frame.depth.suffix == ".bin" for frame in listing.frames) == 45


def test_scans_need_both_calibration_files(tree):
    root = tree([(TEST, "image_02", 6)])
    scan(root, TEST, 6)
    (root / "2011_09_26" / "calib_velo_to_cam.txt").unlink()
    ids = [f"{TEST}/image_02/0000000006"]
    kitti_eigen(root, "test", ids=ids)
    with pytest.raises(DataError, match=r"2011_09_26/calib_velo_to_cam\.txt"):
        kitti_eigen(root, "test", truth="velodyne", ids=ids)


@pytest.mark.parametrize("layout", ["merged", "official archives", "archives opened in the root"])
def test_official_training_takes_all_annotated_drives_but_those_of_the_validation(tree, layout):
    cameras = ("image_02", "image_03")
    root = tree(
        [(drive, camera, number) for drive in (TRAIN, TEST) for camera in cameras for number in (7, 5)],
        layout,
    )
    assert TEST in validation_drives()
    source = kitti_official(root)
    assert source.ids == [f"{TRAIN}/{camera}/{number:010d}" for camera in cameras for number in (5, 7)]
    assert source[0].intrinsics[0, 0] == 700
    assert source[2].intrinsics[0, 0] == 705
    assert source[3].depth.max() == 7
    assert len(kitti_official(root, camera="left")) == len(kitti_official(root, camera="right")) == 2


def test_official_training_needs_the_image_of_every_map(tree):
    root = tree([(TRAIN, "image_02", 5), (TRAIN, "image_02", 6)])
    (root / TRAIN[:10] / TRAIN / "image_02" / "data" / "0000000006.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 files are missing"):
        kitti_official(root)


def test_official_training_without_a_drive_names_the_folders(tmp_path):
    with pytest.raises(DataError, match=rf"(?s)no annotated drive was found.*{tmp_path}"):
        kitti_official(tmp_path)


def test_calibration_matrices(tmp_path):
    calibrate(tmp_path)
    assert camera_intrinsics(tmp_path, 3) == (705.0, 705.0, WIDTH / 2, HEIGHT / 2)
    u, v, depth = scanner_to_image(tmp_path, 2) @ (10.25, 0.06, 0.5, 1)
    assert depth == pytest.approx(10.0)
    assert u / depth == pytest.approx(WIDTH / 2)
    assert v / depth == pytest.approx(HEIGHT / 2 - 35)
    assert "calib_time" not in read_calibration(tmp_path / "calib_cam_to_cam.txt")


@pytest.mark.real_data
def test_genuine_files():
    tree = KittiTree(SAMPLES)
    assert tree.raw == SAMPLES / "raw"
    name = f"{TRAIN}/image_02/0000000005"
    source = kitti_eigen(SAMPLES, ids=[f"{TRAIN}/image_02/{number:010d}" for number in (5, 50, 100)])
    assert source.ids[0] == name
    for index in range(3):
        sample = source[index]
        assert sample.image.shape == (375, 1242, 3)
        assert 80_000 < np.count_nonzero(sample.depth) < 110_000
        assert sample.depth[sample.depth > 0].min() > 2
        assert sample.depth.max() < 100
        assert sample.intrinsics[0, 0] == 721.5377
        assert tuple(sample.intrinsics[:2, 2]) == (609.5593, 172.854)
    raw = cv2.imread(str(source.frames[0].depth), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(source[0].depth, raw.astype(np.float32) / 256)


@pytest.mark.real_data
def test_genuine_test_frames_with_their_scans():
    ids = [f"{TEST}/image_02/{number:010d}" for number in (0, 9)]
    source = kitti_eigen(SAMPLES, "test", truth="velodyne", ids=ids)
    for index in range(2):
        depth = source[index].depth
        assert 17_000 < np.count_nonzero(depth) < 21_000
        assert 5 < np.median(depth[depth > 0]) < 30
    assert len(kitti_official(SAMPLES, camera="left")) == 3
