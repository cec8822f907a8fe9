import io
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data.check import data_set as check_module
from sa2depth.data.check.data_set import check, image_count
from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import Limited, PngDepth, RotatedPngDepth
from sa2depth.data.io.depth_units import UNITS
from sa2depth.data.listing import Listing, missing_files
from sa2depth.data.sets import nyu, sunrgbd
from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.sets.kitti.velodyne import VelodyneDepth
from sa2depth.data.source import from_listing, missing_files_allowed

RANGE = (0.1, 12.0)


def write_pair(folder, name, seed, metres=(1.0, 9.0), units=1000.0):
    """A photograph of noise and a ramp of depth, 24x32."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image, depth = folder / f"{name}.jpg", folder / f"{name}_depth.png"
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(image)
    ramp = np.linspace(*metres, 24 * 32).reshape(24, 32) * units
    cv2.imwrite(str(depth), ramp.astype(np.uint16))
    return image, depth


@pytest.fixture
def split(tmp_path):
    """A listing of ``count`` frames, two per place, whose files are written."""

    def make(name="train", count=4, seed=0, **options):
        decode = options.pop("decode", PngDepth(1000.0))
        written = {key: options.pop(key) for key in ("metres", "units") if key in options}
        frames = []
        for number in range(count):
            place = f"{name}_room{number // 2}"
            image, depth = write_pair(
                tmp_path / name / place, f"{number:03d}", seed * 1000 + number, **written
            )
            frames.append(Frame(image, depth, (50, 50, 16, 12), f"{name}/{number:03d}", place, decode))
        settings = {"size": (24, 32), "depth_range": RANGE} | options
        return Listing(name, tmp_path / name, tuple(frames), "Download the archive.", **settings)

    return make


def look(**listings):
    options = {key: listings.pop(key) for key in ("workers", "quick") if key in listings}
    with missing_files_allowed():
        sources = {name: from_listing(listing, every=2) for name, listing in listings.items()}
        return check(sources, **options)


def with_frame(listing, number, **changes):
    frames = list(listing.frames)
    frames[number] = replace(frames[number], **changes)
    return replace(listing, frames=tuple(frames))


def test_a_clean_tree_is_good(split):
    report = look(train=split(), test=split("test", seed=1))
    assert report.good
    assert report.verdict == "GOOD: all 8 images opened, nothing is wrong"
    train = report.splits[0]
    assert (train.name, train.images, train.files, train.missing, train.opened) == ("train", 4, 8, 0, 4)
    assert train.depth == pytest.approx((1.08, 5.0, 8.92), abs=0.05)
    assert not train.notes


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def holds(array):
    return lambda path: path.write_bytes(cv2.imencode(".png", array)[1])


def ramp(values):
    return holds(values.reshape(24, 32).astype(np.uint16))


def save_as_jpeg(path):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(24, 32)).save(buffer, "jpeg")
    path.write_bytes(buffer.getvalue())


FAULTS = {
    "truncated photograph": ("image", cut, "unreadable", "truncated"),
    "empty photograph": ("image", lambda p: p.write_bytes(b""), "unreadable", "an empty file"),
    "16-bit photograph": ("image", holds(np.ones((24, 32), np.uint16)), "wrong_format", "8-bit photograph"),
    "missing photograph": ("image", Path.unlink, "missing", "no such file"),
    "blank photograph": ("image", holds(np.full((24, 32, 3), 9, np.uint8)), "blank_image", "one colour"),
    "truncated depth": ("depth", cut, "unreadable", "damaged or ends early"),
    "missing depth": ("depth", Path.unlink, "missing", "no such file"),
    "8-bit depth": ("depth", holds(np.ones((24, 32), np.uint8)), "wrong_format", "uint8"),
    "coloured depth": ("depth", holds(np.eye(24, 32)[..., None] * [9, 99, 199]), "wrong_format", "3 channel"),
    "depth through JPEG": ("depth", save_as_jpeg, "wrong_format", "JPEG"),
    "small depth": ("depth", holds(np.full((12, 16), 2000, np.uint16)), "wrong_size", "24x32, found 12x16"),
    "empty depth": ("depth", holds(np.zeros((24, 32), np.uint16)), "empty_depth", "found none"),
    "depth in 1/5000 m": ("depth", ramp(np.linspace(5000, 60000, 768)), "wrong_unit", "fit as 1/5000 m"),
    "depth all over": ("depth", ramp(np.geomspace(10, 60000, 768)), "implausible_depth", "% outside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_named(split, fault):
    which, damage, kind, words = FAULTS[fault]
    listing = split()
    path = getattr(listing.frames[2], which)
    damage(path)
    report = look(train=listing)
    assert [(p.kind, p.id, p.file) for p in report.problems] == [(kind, "train/002", str(path))]
    assert words in report.problems[0].message
    assert report.verdict.startswith(f"NOT GOOD: 1 problems (1 {kind.replace('_', ' ')});")


def test_an_image_of_another_size_than_the_data_set(split):
    listing = split()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(listing.frames[0].image)
    report = look(train=listing)
    assert [(p.kind, p.file) for p in report.problems] == [
        ("wrong_size", str(listing.frames[0].image)),
        ("wrong_size", str(listing.frames[0].depth)),
    ]
    assert not look(train=replace(listing, size=None)).splits[0].missing


def test_masks_and_camera_files_are_opened_too(split, tmp_path):
    Image.new("L", (16, 12), 255).save(tmp_path / "mask.png")
    (tmp_path / "camera.txt").write_text("one two")
    listing = with_frame(
        split(), 0, mask=tmp_path / "mask.png", intrinsics=None, intrinsics_file=tmp_path / "camera.txt"
    )
    kinds = {p.file: p.kind for p in look(train=listing).problems}
    assert kinds == {str(tmp_path / "mask.png"): "wrong_size", str(tmp_path / "camera.txt"): "unreadable"}


def test_a_laser_scan_whose_photograph_is_missing_is_opened_and_not_blamed(split, tmp_path):
    scan = tmp_path / "scan.bin"
    np.array([[9, 0, 0, 0.5], [5, 0, 0, 0.5]], np.float32).tofile(scan)
    # the camera looks along x: u = y / x, v = z / x, depth = x
    decode = VelodyneDepth.of(np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [1.0, 0, 0, 0]]))
    listing = with_frame(split(size=None), 0, depth=scan, decode=decode)
    assert look(train=listing).good
    listing.frames[0].image.unlink()
    assert [p.kind for p in look(train=listing).problems] == ["missing"]
    scan.write_bytes(b"12345")
    assert [p.kind for p in look(train=listing).problems] == ["missing", "unreadable"]


def test_a_missing_file_that_many_frames_share_is_one_problem(split, tmp_path):
    listing = split()
    for number in range(4):
        listing = with_frame(listing, number, intrinsics=None, intrinsics_file=tmp_path / "calib.txt")
    report = look(train=listing)
    assert len(report.problems) == 1
    assert report.problems[0].message.endswith("4 images need it")
    assert report.splits[0].files == 9


def test_millimetres_read_as_kitti_are_named(split):
    # 1 to 9 m in millimetres look like 4 to 35 m
    report = look(train=split(count=2, decode=PngDepth(256.0)))
    assert {p.kind for p in report.problems} == {"wrong_unit"}
    assert len(report.problems) == 2
    assert "It would fit as millimetres (1000 units per metre" in report.problems[0].message


def test_kitti_read_as_millimetres_is_named_although_every_image_is_in_range(split):
    # 1 to 9 m look like 0.26 to 2.3 m: the only oddity is that no depth in the set reaches 3 m
    listing = split(count=24, units=256.0)
    report = look(train=listing)
    assert [p.kind for p in report.problems] == ["wrong_unit"]
    assert "256 units per metre: KITTI" in report.problems[0].message
    assert "no depth beyond 2.28 m in 24 images" in report.problems[0].message
    assert look(train=replace(listing, frames=listing.frames[:8])).good


@pytest.mark.parametrize("units", [u for u in UNITS if 256 < u <= 5000])
def test_each_unit_that_puts_values_too_far_is_recognised(split, units):
    report = look(train=split(count=1, metres=(0.5, 8.0), units=units, decode=PngDepth(1.0)))
    assert [p.kind for p in report.problems] == ["wrong_unit"]


def test_sun_rotation_forgotten_or_done_twice(split):
    plain = look(train=split(count=1, decode=RotatedPngDepth()))
    assert "plain millimetres, not rotated" in plain.problems[0].message
    rotated = split("b", count=1, metres=(2.0, 8.0), units=8000.0)
    assert "rotated by 3 bits (SUN RGB-D)" in look(train=rotated).problems[0].message


def test_limits_that_drop_everything_report_the_depths_found(split):
    listing = split(count=1, decode=Limited(PngDepth(1.0), 0.5, 20.0))
    (problem,) = look(train=listing).problems
    assert problem.kind == "wrong_unit"
    assert "expected 0.5 to 20 m, found 1.08e+03 to 8.92e+03 m" in problem.message
    assert "millimetres" in problem.message


def test_limits_may_drop_a_part(split):
    # a third of the ramp from 1 to 9 m is farther than 6.4 m; a set that never comes near its limit is not a fault
    part = look(train=split(count=1, decode=Limited(PngDepth(1000.0), 0.5, 6.4), depth_range=(0.5, 6.4)))
    assert part.good
    assert part.splits[0].depth[2] == pytest.approx(6.4, abs=0.1)
    far = split("b", count=24, decode=Limited(PngDepth(1000.0), 0.0, 80.0), depth_range=(0.0, 80.0))
    assert look(train=far).good


def test_images_without_truth_are_counted_not_blamed(split):
    report = look(test=with_frame(split("test"), 1, depth=None))
    assert report.good
    assert report.splits[0].without_truth == 1
    assert report.splits[0].opened == 4


def test_places_in_two_splits(split):
    test = with_frame(split("test", seed=1), 0, place="train_room1")
    report = look(train=split(), test=test)
    assert [(p.kind, p.id) for p in report.problems] == [("leaked_place", "train_room1")]
    assert "2 images in train (train/002, train/003) and 1 in test (test/000)" in report.leaks[0].message


def test_one_folder_for_all_images_is_not_a_place(split):
    train, test = split(), split("test", seed=1)
    for number in range(4):
        train, test = (with_frame(one, number, place="images") for one in (train, test))
    assert look(train=train, test=test).good


def test_the_same_id_or_file_in_two_splits(split):
    train = split()
    test = with_frame(split("test", seed=1), 3, id="train/001")
    assert [(p.kind, p.id) for p in look(train=train, test=test).leaks] == [("leaked_image", "train/001")]
    same_file = with_frame(split("test", seed=1), 3, image=train.frames[0].image)
    (leak,) = look(train=train, test=same_file).leaks
    assert "'train/000'" in leak.message
    assert "'test/003'" in leak.message


def test_a_copy_under_another_name_leaks(split):
    train, test = split(), split("test", seed=1)
    shutil.copyfile(train.frames[3].image, test.frames[0].image)
    (leak,) = look(train=train, test=test).problems
    assert (leak.kind, leak.id, leak.file) == ("leaked_image", "test/000", str(test.frames[0].image))
    assert "byte-for-byte" in leak.message
    assert "'train/003'" in leak.message


def test_training_images_that_select_models_leak_and_shared_test_images_are_noted(split):
    report = look(train=split(), val=split(), test=split())
    assert len(report.splits) == 1  # one list behind all three
    assert report.splits[0].name == "train, val, test"
    assert {p.kind for p in report.leaks} == {"leaked_image", "leaked_place"}
    assert report.notes == [
        "val and test share 4 images: models are selected on the images that the result is measured on"
    ]


def test_a_divided_training_list_is_checked_once_and_whole(split):
    listing = split(count=8)
    with missing_files_allowed():
        sources = {
            "train": from_listing(listing, "fit", 2, limit=1),
            "val": from_listing(listing, "held_out", 2),
        }
    report = check(sources)
    assert image_count(sources) == 8
    assert [part.opened for part in report.splits] == [8]
    assert report.good


def test_two_lists_of_one_title_and_folder_are_both_checked(split):
    listing = split(count=4)
    one, other = (replace(listing, frames=listing.frames[part]) for part in (slice(2), slice(2, 4)))
    cut(listing.frames[3].image)
    assert [p.id for p in look(train=one, test=other).problems] == ["train/003"]


def test_copies_within_a_split_are_noted(split):
    listing = split()
    shutil.copyfile(listing.frames[0].image, listing.frames[1].image)
    report = look(train=listing)
    assert report.good
    assert report.splits[0].notes == [
        "1 images are copies of others in the list, first 'train/001' (of 'train/000')"
    ]


def test_quick_opens_a_few_images_and_finds_all_missing_files(split, monkeypatch):
    monkeypatch.setattr(check_module, "QUICK", 3)
    listing = split(count=12)
    listing.frames[7].depth.unlink()
    report = look(train=listing, quick=True)
    assert report.splits[0].opened == 3
    assert [p.file for p in report.problems] == [str(listing.frames[7].depth)]
    assert "3 of 12 images opened" in report.verdict


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(split, workers):
    listing = split(count=9)
    for number in (1, 4, 5, 8):
        cut(listing.frames[number].image)
    seen = []
    with missing_files_allowed():
        report = check({"train": from_listing(listing)}, workers, advance=seen.append)
    assert [p.id for p in report.problems] == [f"train/{n:03d}" for n in (1, 4, 5, 8)]
    assert seen == [1] * 9


def test_only_a_few_frames_are_in_flight():
    from concurrent.futures import ThreadPoolExecutor

    asked = []

    def tasks():
        for number in range(100):
            asked.append(number)
            yield lambda n=number: n

    with ThreadPoolExecutor(2) as pool:
        results = check_module._in_order(pool, 5, tasks())
        assert next(results) == 0
        assert len(asked) == 5
        assert list(results) == list(range(1, 100))


def test_a_source_without_files_is_checked_too(raw_sample, list_source):
    samples = [raw_sample(seed=n) for n in range(3)]
    samples[1] = replace(samples[1], depth=samples[1].depth * 0)
    report = check({"train": list_source(samples)})
    assert [(p.kind, p.id) for p in report.problems] == [("empty_depth", "sample1")]
    assert report.splits[0].opened == 3


def test_splits_that_cannot_be_listed_are_problems():
    report = check({}, unlisted={"train": "no folder", "val": "no folder", "test": "no list"})
    assert [(p.kind, p.id, p.message) for p in report.problems] == [
        ("no_list", "train, val", "no folder"),
        ("no_list", "test", "no list"),
    ]


SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "samples"


def there(listing, **changes):
    """The frames of a listing whose files are among the samples."""
    frames = [frame for frame in listing.frames if not missing_files(frame.files)]
    assert frames
    return replace(listing, frames=tuple(replace(f, **changes) for f in frames), expected=None)


@pytest.mark.real_data
def test_genuine_files_are_good_and_a_wrong_unit_is_recognised():
    sync = nyu.sync(SAMPLES / "nyu")
    annotated = SAMPLES / "kitti" / "data_depth_annotated"
    drives = kitti.eigen(SAMPLES / "kitti" / "raw", "train", depth_root=annotated)
    for listing in (sync, drives, sunrgbd.listing(SAMPLES / "sunrgbd")):
        report = look(test=there(listing))
        assert report.good, report.problems
    wrong = look(train=there(sync, decode=PngDepth(256.0))).problems
    assert {p.kind for p in wrong} == {"wrong_unit"}
    assert all("millimetres (1000 units per metre" in p.message for p in wrong)
    in_metres = look(train=there(drives, decode=PngDepth(1.0))).problems
    assert {p.kind for p in in_metres} == {"wrong_unit"}
    assert all("256" in p.message for p in in_metres)
