import pkgutil
import subprocess
import sys

import pytest

from sa2depth.data import sets as index
from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import PngDepth
from sa2depth.data.sets import nyu
from sa2depth.data.source import from_listing
from sa2depth.data.splits.selection import handful, hold_out
from sa2depth.data.splits.tables import parse_ranges, read_table, tables
from sa2depth.errors import ConfigError, DataError


def frames_of(names):
    return [
        Frame(nyu.Path("x"), None, nyu.INTRINSICS, f"{name}{i}", name[:-1]) for i, name in enumerate(names)
    ]


def test_index_needs_no_torch():
    names = [f"sa2depth.data.sets.{module.name}" for module in pkgutil.iter_modules(index.__path__)]
    assert len(names) == 5
    code = f"import sys, {', '.join(names)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5]), ("", []), ("4-4", [4]), (" 1 - 2 ,\r\n9\r\n", [1, 2, 9])],
)
def test_ranges(text, numbers):
    assert parse_ranges(text) == numbers


@pytest.mark.parametrize("text", ["a", "3-", "-3", "5-2", "1,,2", "1-2-3", "1.5"])
def test_nonsense_ranges_are_refused(text):
    with pytest.raises(DataError):
        parse_ranges(text)


@pytest.mark.parametrize(
    ("name", "count", "scenes", "first", "last"),
    [
        ("nyu_v2_train_36253", 36253, 284, ("basement_0001a", 0), None),
        ("nyu_v2_train_24231", 24231, 284, ("basement_0001a", 1), None),
        ("nyu_v2_test_654", 654, 16, ("bathroom", 45), None),
        ("nyu_v2_labelled_train_795", 795, 249, None, None),
    ],
)
def test_split_tables_have_their_published_counts(name, count, scenes, first, last):
    table = read_table(name)
    assert len(table) == len(set(table)) == count
    assert len({scene for scene, _ in table}) == scenes
    assert list(table) == sorted(table)
    assert first is None or table[0] == first


def test_the_official_halves_of_the_labelled_set_share_no_image():
    numbers = [number for name in nyu.LABELLED_TABLES.values() for _, number in read_table(name)]
    assert sorted(numbers) == list(range(1449))


def test_unknown_table_names_the_others():
    with pytest.raises(DataError, match="nyu_v2_test_654"):
        read_table("nyu_v3")
    assert {name.split("_")[0] for name in tables()} == {"kitti", "nyu"}
    assert len(tables()) == 7


def test_labelled_layout(labelled_tree):
    root, ids = labelled_tree("train", 3)
    frames = handful(nyu.labelled(root, "train").frames, ids=ids)
    assert [frame.id for frame in frames] == ids
    scene, number = ids[0].split("/")[1:]
    assert frames[0].image == root / "official_splits" / "train" / scene / f"rgb_{number}.jpg"
    assert frames[0].depth == root / "official_splits" / "train" / scene / f"sync_depth_{number}.png"
    assert frames[0].decode == PngDepth(1000.0)
    assert frames[0].intrinsics == (518.8579, 519.4696, 325.5824, 253.7362)


@pytest.mark.parametrize("inner", ["", "sync"])
def test_sync_is_found_with_and_without_its_folder(tmp_path, inner):
    folder = tmp_path / inner / "basement_0001a"
    folder.mkdir(parents=True)
    for name in ("rgb_00007.jpg", "sync_depth_00007.png"):
        (folder / name).touch()
    wanted = ["sync/basement_0001a/00007"]
    listing = nyu.sync(tmp_path, "24231")
    frames = handful(listing.frames, ids=wanted)
    listing.require(frames)
    assert frames[0].image == folder / "rgb_00007.jpg"


def test_absent_root_fails_with_count_names_and_advice(tmp_path):
    with pytest.raises(DataError) as caught:
        nyu.labelled(tmp_path / "nowhere", "test").require()
    text = str(caught.value)
    assert "1,308 of 1,308 files are missing" in text
    assert "does not exist" in text
    assert "bathroom/rgb_00045.jpg" in text
    assert "and 1,303 more" in text
    assert "nyu_depth_v2_labeled.mat" in text
    assert "paths.data_dir" in text


def test_a_few_absent_files_are_named_alone(labelled_tree):
    root, ids = labelled_tree("test", 4)
    folder = root / "official_splits" / "test" / "bathroom"
    (folder / "sync_depth_00046.png").unlink()
    (folder / "rgb_00507.jpg").unlink()
    with pytest.raises(DataError) as caught:
        from_listing(nyu.labelled(root, "test"), ids=ids)
    text = str(caught.value)
    assert "2 of 8 files are missing" in text
    assert "bathroom/sync_depth_00046.png" in text
    assert "bathroom/rgb_00507.jpg" in text
    assert "more" not in text.splitlines()[3]


@pytest.mark.parametrize("read", [nyu.sync, nyu.labelled])
def test_unknown_split(read, tmp_path):
    with pytest.raises(ConfigError, match="choose one of"):
        read(tmp_path, "val")


@pytest.mark.parametrize("table", ["nyu_v2_train_36253", "nyu_v2_train_24231", "nyu_v2_labelled_train_795"])
@pytest.mark.parametrize("every", [2, 20])
def test_held_out_places_are_disjoint_and_nothing_is_lost(table, every):
    frames = [nyu._frame(nyu.Path("r"), scene, number, "t") for scene, number in read_table(table)]
    fit, held_out = hold_out(frames, "fit", every), hold_out(frames, "held_out", every)
    assert not {frame.place for frame in fit} & {frame.place for frame in held_out}
    assert sorted(frame.id for frame in fit + held_out) == sorted(frame.id for frame in frames)
    assert 0.4 / every < len(held_out) / len(frames) < 2.2 / every


def test_recordings_of_one_room_stay_together():
    places = {
        nyu._frame(nyu.Path("r"), scene, 0, "t").place for scene in ("basement_0001a", "basement_0001b")
    }
    assert places == {"basement_0001"}


def test_all_is_undivided_and_nonsense_refused():
    frames = frames_of(["a1", "b1", "c1"])
    assert hold_out(frames, "all", 0) == frames
    with pytest.raises(ConfigError):
        hold_out(frames, "fit", 1)
    with pytest.raises(ConfigError):
        hold_out(frames, "half", 2)
    with pytest.raises(ConfigError, match="too few places"):
        hold_out(frames[:1], "fit", 2)


def test_handful():
    frames = frames_of(["a1"] * 10)
    assert handful(frames) == frames
    assert handful(frames, limit=5) == frames[::2]
    assert handful(frames, limit=99) == frames
    assert handful(frames, ids=["a14", "a12"]) == [frames[4], frames[2]]
    with pytest.raises(DataError, match=r"'a1x'.*did you mean a1"):
        handful(frames, ids=["a1x"])
    with pytest.raises(ConfigError):
        handful(frames, limit=0)
    with pytest.raises(ConfigError):
        handful(frames, limit=1, ids=["a10"])
