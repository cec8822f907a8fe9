"""NYU v2: the places of its files, and errors about missing ones."""

from pathlib import Path

import pytest

from sa2depth.data.io.depth_files import PngDepth
from sa2depth.data.sets import nyu
from sa2depth.data.source import from_listing
from sa2depth.data.splits.selection import handful
from sa2depth.errors import DataError


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


def test_recordings_of_one_room_stay_together():
    places = {
        frame.place for frame in nyu.sync(Path("r")).frames if frame.id.startswith("sync/basement_0001")
    }
    assert places == {"basement_0001"}
