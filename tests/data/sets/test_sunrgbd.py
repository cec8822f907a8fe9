"""SUN RGB-D: its table, its lists, its folders, and its bit-rotated depth."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from sa2depth.data.sets import sunrgbd
from sa2depth.data.sets.sunrgbd import sunrgbd as source
from sa2depth.errors import DataError

SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "samples" / "sunrgbd"
KV2 = "kv2/align_kv2/2014-12-18_11-31-54_260595134347"


@pytest.fixture
def tree(tmp_path):
    """Write images of the table by number, each of another size; returns the folder that holds ``SUNRGBD``."""

    def make(*numbers):
        for number in numbers:
            entry = sunrgbd.read_table()[number]
            folder = tmp_path / "SUNRGBD" / entry.folder
            for name in ("image", "depth", "depth_bfx"):
                (folder / name).mkdir(parents=True)
            size = (4 + number % 7, 6)
            Image.new("RGB", size[::-1], (number % 256, 0, 0)).save(folder / "image" / f"{entry.image}.jpg")
            millimetres = np.full(size, 1000 + number, np.uint16)
            for name, depth in (("depth", millimetres), ("depth_bfx", millimetres * 2)):
                rotated = ((depth << 3) | (depth >> 13)).astype(np.uint16)
                cv2.imwrite(str(folder / name / f"{entry.depth}.png"), rotated)
            (folder / "intrinsics.txt").write_text(f"500 0 {number}\n0 501 3\n0 0 1\n")
        return tmp_path

    return make


def test_table_holds_the_published_count_of_every_sensor():
    table = sunrgbd.read_table()
    assert len(table) == len({entry.folder for entry in table}) == 5050
    collections = Counter("/".join(entry.folder.split("/")[:2]) for entry in table)
    assert collections == {
        "kv1/NYUdata": 654,
        "kv1/b3dodata": 276,
        "kv2/align_kv2": 149,
        "kv2/kinect2data": 1711,
        "realsense/lg": 548,
        "realsense/sa": 24,
        "xtion/sun3ddata": 1539,
        "xtion/xtion_align_data": 149,
    }


def test_packed_table_is_reproducible():
    packed = (files("sa2depth.data.splits") / "sunrgbd_test_5050.txt.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # no time in the header: packing the same list gives the same file


@pytest.mark.real_data
def test_table_is_that_of_the_shared_list():
    lines = (SAMPLES.parents[1] / "splits" / "sunrgbd_test_5050.txt").read_text().splitlines()
    assert [tuple(line.split()) for line in lines] == [tuple(entry) for entry in sunrgbd.read_table()]


@pytest.mark.parametrize("below", ["", "SUNRGBD"])
def test_layout(tmp_path, below):
    (tmp_path / "SUNRGBD").mkdir()
    listing = sunrgbd.listing(tmp_path / below)
    by_id = {frame.id: frame for frame in listing.frames}
    frame = by_id["kv1/b3dodata/img_0847"]
    folder = tmp_path / "SUNRGBD" / "kv1" / "b3dodata" / "img_0847"
    assert frame.image == folder / "image" / "img_0847.jpg"
    assert frame.depth == folder / "depth" / "img_0847_abs.png"
    assert frame.intrinsics_file == folder / "intrinsics.txt"
    assert frame.intrinsics is None


def test_filled_depth_lies_in_its_own_folder(tmp_path):
    listing = sunrgbd.listing(tmp_path, "depth_bfx")
    assert {frame.depth.parent.name for frame in listing.frames} == {"depth_bfx"}
    assert "filled" in listing.title


def test_recordings_of_one_room_are_one_place(tmp_path):
    places = Counter(frame.place for frame in sunrgbd.listing(tmp_path).frames)
    assert places["xtion/sun3ddata/mit_lab_16"] == 63
    assert places["kv1/NYUdata/NYU0002"] == 1


@pytest.mark.parametrize(("depth", "metres"), [("depth", 1.007), ("depth_bfx", 2.014)])
def test_samples_of_any_size_with_their_camera(tree, depth, metres):
    root = tree(7, 4000)
    ids = [sunrgbd.read_table()[number].folder for number in (7, 4000)]
    read = source(root, depth=depth, ids=ids)
    first, second = read[0], read[1]
    assert first.image.shape == (4, 6, 3)
    assert second.image.shape == (4 + 4000 % 7, 6, 3)
    np.testing.assert_allclose(first.depth, metres, rtol=1e-6)
    assert first.intrinsics.tolist() == [[500, 0, 7], [0, 501, 3], [0, 0, 1]]
    assert first.id == ids[0]


def test_missing_files_are_counted_and_told_where_they_belong(tree):
    root = tree(0, 1)
    ids = [sunrgbd.read_table()[number].folder for number in (0, 1)]
    (root / "SUNRGBD" / ids[1] / "intrinsics.txt").unlink()
    with pytest.raises(DataError, match=f"1 of 6 files are missing(.|\n)*{ids[1]}/intrinsics.txt") as caught:
        source(root, ids=ids)
    assert "paths.data_dir" in str(caught.value)


def test_limit_spreads_over_the_list(tmp_path, tree):
    root = tree(0, 2525)
    assert [frame.id for frame in source(root, limit=2).frames] == [
        sunrgbd.read_table()[number].folder for number in (0, 2525)
    ]


LINES = {
    "paths": f"SUNRGBD/{KV2}/image/0000144.jpg SUNRGBD/{KV2}/depth/0000144.png",
    "slash": f"/SUNRGBD/{KV2}/image/0000144.jpg /SUNRGBD/{KV2}/depth/0000144.png",
    "bare": f"{KV2}/image/0000144.jpg\t{KV2}/depth/0000144.png  ",
    "table": f"{KV2} 0000144 0000144",
}


@pytest.mark.parametrize("form", LINES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_lists_of_users(tmp_path, form, end, start):
    path = tmp_path / "mine.txt"
    other = "kv1/b3dodata/img_0063 img_0063 img_0063_abs"
    path.write_bytes(f"{start}{LINES[form]}{end}{end}{other}{end}".encode())
    entries = sunrgbd.read_list(path)
    assert entries == ((KV2, "0000144", "0000144"), ("kv1/b3dodata/img_0063", "img_0063", "img_0063_abs"))
    listing = sunrgbd.listing(tmp_path, image_list=path)
    assert len(listing.frames) == 2
    assert listing.expected is None
    assert "mine.txt" in listing.title


@pytest.mark.parametrize(
    "line",
    [
        "one",
        "a/image/1.jpg",
        "a/image/1.jpg b/depth/1.png",
        "a/image/1.jpg a/depth/1.png 518.8",
        "a/rgb/1.jpg a/depth/1.png",
        "a/image/1.jpg a/depth/1.jpg",
        "a/image/1.jpg a/label/1.png",
    ],
)
def test_nonsense_lines_are_named_by_number(tmp_path, line):
    path = tmp_path / "mine.txt"
    path.write_text(f"{LINES['paths']}\n{line}\n")
    with pytest.raises(DataError, match=r"mine\.txt, line 2: expected 'SUNRGBD/FOLDER/image"):
        sunrgbd.read_list(path)


def test_a_list_and_an_option_that_disagree_are_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(LINES["paths"].replace("/depth/", "/depth_bfx/"))
    with pytest.raises(DataError, match=r"line 1.*data\.test\.depth=depth_bfx"):
        sunrgbd.read_list(path)
    assert sunrgbd.read_list(path, "depth_bfx")[0].folder == KV2


@pytest.mark.parametrize("text", ["", "\r\n\r\n", LINES["paths"] + "\n\n" + LINES["table"], None])
def test_unusable_lists(tmp_path, text):
    path = tmp_path / "mine.txt"
    if text is not None:
        path.write_text(text)
    found = {None: "cannot read"}.get(text, "line 3.*listed in line 1" if text and text.strip() else "none")
    with pytest.raises(DataError, match=found):
        sunrgbd.read_list(path)


def test_configuration_is_for_evaluation_alone(compose, tree):
    root = tree(7)
    module = instantiate(
        compose("data=sunrgbd", "data.test.depth=depth_bfx", "data.test.limit=null", f"data.test.root={root}")
    )
    assert module.source("train") is None
    assert module.source("val") is None
    with pytest.raises(DataError, match="filled depth: 15,147 of 15,150 files are missing"):
        module.setup("test")
    one = [sunrgbd.read_table()[7].folder]
    module = instantiate(compose("data=sunrgbd", f"data.test.ids={one}", f"data.test.root={root}"))
    assert module.counts("test") == {"test": 1}
    (batch,) = module.test_dataloader()
    assert batch["depth"].shape == (1, 1, 4, 6)
    assert batch["intrinsics"][0, 0, 2] == 7


def test_data_are_looked_for_below_the_data_folder(compose, tmp_path):
    assert compose("data=sunrgbd").test.root == str(tmp_path / "sunrgbd")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "image", "depth", "size", "focal", "median"),
    [
        (KV2, "0000144", "0000144", (530, 730), 529.5, 2.397),
        ("kv1/b3dodata/img_0063", "img_0063", "img_0063_abs", (427, 561), 520.532, 1.963),
    ],
)
def test_genuine_images(tmp_path, folder, image, depth, size, focal, median):
    path = tmp_path / "sample.txt"
    path.write_text(f"{folder} {image} {depth}\r\n")
    raw = source(SAMPLES, image_list=path)[0]
    filled = source(SAMPLES, "depth_bfx", path)[0]
    assert raw.image.shape == (*size, 3)
    assert raw.depth.shape == filled.depth.shape == size
    assert raw.intrinsics[0, 0] == focal
    assert raw.id == folder
    measured = raw.depth > 0
    assert np.median(raw.depth[measured]) == pytest.approx(median, abs=1e-3)
    assert measured.mean() < 0.9
    assert (filled.depth > 0).all()
    # filling changes almost nothing where depth was measured
    assert np.median(np.abs(filled.depth - raw.depth)[measured]) < 0.005


@pytest.mark.real_data
def test_genuine_image_is_one_of_the_5050():
    assert source(SAMPLES, ids=[KV2])[0].id == KV2
