"""Rules for every data set: its list, errors about missing files, its division, how it is found."""

import pickle
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import sa2depth.data
from sa2depth import scenes
from sa2depth.cli import app
from sa2depth.data import sets
from sa2depth.data.sets import diml, nyu, sunrgbd
from sa2depth.data.sets.kitti.eigen import eigen
from sa2depth.data.sets.kitti.official import official
from sa2depth.data.splits.selection import hold_out
from sa2depth.errors import ConfigError, DataError
from sa2depth.resources import conf_dir

# function, frames, frames without truth, files, words of the message about missing files
LISTS = {
    "nyu_sync": (nyu.sync, 36253, 0, 72506, ["basement_0001a/rgb_00000.jpg", "sync.zip"]),
    "nyu_sync 24231": (partial(nyu.sync, split="24231"), 24231, 0, 48462, ["sync.zip"]),
    "nyu_labelled": (nyu.labelled, 795, 0, 1590, ["nyu_depth_v2_labeled.mat"]),
    "nyu_labelled test": (
        *(partial(nyu.labelled, split="test"), 654, 0, 1308),
        ["bathroom/rgb_00045.jpg", "and 1,303 more", "nyu_depth_v2_labeled.mat"],
    ),
    # one more file for each recording day: its calibration
    "kitti_eigen": (eigen, 23158, 0, 46321, ["data_depth_annotated.zip", "depth_root"]),
    "kitti_eigen test": (
        *(partial(eigen, split="test"), 697, 45, 1354),
        ["data_depth_annotated/train", "DATE/DRIVE", "data_depth_annotated.zip", "depth_root"],
    ),
    "kitti_official val": (partial(official, split="val"), 1000, 0, 3000, ["data_depth_selection.zip"]),
    "kitti_official test": (partial(official, split="test"), 500, 500, 1000, ["data_depth_selection.zip"]),
    "sunrgbd": (sunrgbd.listing, 5050, 0, 15150, ["rgbd.cs.princeton.edu"]),
    "sunrgbd filled": (partial(sunrgbd.listing, depth="depth_bfx"), 5050, 0, 15150, ["depth_bfx/"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_whole_and_says_what_to_do_without_its_files(name, tmp_path):
    read, count, without_truth, files, words = LISTS[name]
    listing = read(tmp_path / "nowhere")
    assert len(listing.frames) == (listing.expected or count) == count
    assert len(listing.without_truth) == without_truth
    assert pickle.loads(pickle.dumps(listing.frames[-1])) == listing.frames[-1]
    with pytest.raises(DataError) as caught:
        listing.require()
    text = str(caught.value)
    wanted = [f"{files:,} of {files:,} files are missing", "does not exist", "paths.data_dir", *words]
    assert [word for word in wanted if word not in text] == []


@pytest.mark.parametrize("every", [2, 10, 20])
@pytest.mark.parametrize("name", ["nyu_sync", "nyu_sync 24231", "nyu_labelled", "kitti_eigen"])
def test_held_out_places_are_disjoint_and_nothing_is_lost(name, every, tmp_path):
    frames = LISTS[name][0](tmp_path).frames
    fit, held_out = hold_out(frames, "fit", every), hold_out(frames, "held_out", every)
    assert not {frame.place for frame in fit} & {frame.place for frame in held_out}
    assert sorted(frame.id for frame in fit + held_out) == sorted(frame.id for frame in frames)
    if name.startswith("nyu"):  # KITTI's 33 drives differ much in length
        assert 0.4 / every < len(held_out) / len(frames) < 2.2 / every


@pytest.mark.parametrize(
    ("read", "options"),
    [
        (nyu.sync, {"split": "val"}),
        (nyu.labelled, {"split": "val"}),
        (sunrgbd.listing, {"depth": "filled"}),
        (eigen, {"split": "val"}),
        (eigen, {"camera": "middle"}),
        (eigen, {"truth": "guessed"}),
        (eigen, {"split": "test", "camera": "right"}),
        (eigen, {"split": "test", "camera": "both"}),
        (official, {"split": "valid"}),
        (official, {"camera": "middle"}),
        (official, {"split": "val", "camera": "left"}),
        (official, {"split": "test", "depth_root": "elsewhere"}),
        (diml.outdoor, {"split": "val"}),
        (diml.outdoor, {"resolution": "MR"}),
        (diml.outdoor, {"test_every": 1}),
        (diml.outdoor, {"max_depth": 0.0}),
        (diml.outdoor, {"max_depth": float("nan")}),
    ],
)
def test_options_that_do_not_exist(tmp_path, read, options):
    name, value = list(options.items())[-1]
    with pytest.raises(ConfigError, match=rf"{name.replace('_', '[ _]')}.*{value}|for split=train"):
        read(tmp_path, **options)


@pytest.mark.parametrize(
    "names",
    [
        "sa2depth.data.listing, sa2depth.data.sets.kitti.submission, sa2depth.data.prepare, sa2depth.data.sets",
        "sa2depth.data.check.data_set, sa2depth.cli.data.submission",
    ],
)
def test_listing_preparing_and_checking_need_no_torch(names):
    code = (
        f"import sys, {names}; from sa2depth.data.sets import factories, recipes; assert factories() and recipes();"
        "print(*sorted({'torch', 'h5py', 'albumentations'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_names_that_configurations_use():
    factories = {
        "custom",
        "diml_outdoor",
        "kitti_eigen",
        "kitti_official",
        "nyu_labelled",
        "nyu_sync",
        "sunrgbd",
    }
    assert set(sets.factories()) == factories
    assert set(sets.recipes()) == factories - {"custom"}
    assert all(getattr(sa2depth.data, name) is sets.factories()[name] for name in factories)
    assert sa2depth.data.SyntheticScenes is scenes.SyntheticScenes
    assert {*factories, *sa2depth.data.__all__} <= set(dir(sa2depth.data))
    with pytest.raises(AttributeError, match="no attribute 'nyu_synk'"):
        sa2depth.data.nyu_synk  # noqa: B018


MODULE = """
from dataclasses import dataclass
from pathlib import Path

from sa2depth.data.frame import Frame
from sa2depth.data.listing import Listing
from sa2depth.data.prepare import Recipe
from sa2depth.data.source import from_listing

__all__ = ["toy_yard"]


def listing(root):
    frames = (Frame(Path(root, f"{n}.jpg"), Path(root, f"{n}.png"), None, n, n) for n in "ab")
    return Listing("Toy yard", Path(root), tuple(frames), "Build one.")


def toy_yard(root, split, **chosen):
    return from_listing(listing(root), **chosen)


@dataclass(frozen=True)
class ToyYard(Recipe):
    title = "Toy yard"
    archives = "a folder"

    def place(self, name, source):
        return Path(name).name if name.endswith(("jpg", "png")) else None

    def splits(self):
        return [lambda: listing(self.root)]


RECIPES = {"toy_yard": ToyYard}
"""
YAML = """
defaults: [nyu_labelled, _self_]
train: {_target_: sa2depth.data.toy_yard}
val: {_target_: toys.toy_yard}
test: null
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A new data set: one module in `sets`, one file in ``conf/data``, and its files."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toys.py").write_text(MODULE)
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path / "more")])
    monkeypatch.syspath_prepend(tmp_path / "more")  # the same file is also a user's own module ``toys``
    for name in ("sa2depth.data.sets.toys", "toys"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is forgotten in the end
        del sys.modules[name]
    conf = shutil.copytree(conf_dir(), tmp_path / "conf")
    (conf / "data" / "toy_yard.yaml").write_text(YAML)
    monkeypatch.setattr("sa2depth.cli.data.choose.conf_dir", lambda: conf)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for number, name in enumerate("ab"):
        noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.jpg")
        Image.fromarray(np.linspace(1000, 9000, 768).reshape(24, 32).astype(np.uint16)).save(
            folder / f"{name}.png"
        )
    return SimpleNamespace(folder=folder, root=tmp_path / "toys")


def test_a_new_data_set_is_one_file_and_one_yaml(toys, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, ["data", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "toy_yard" in run("prepare", "--help")
    done = run("prepare", "toy_yard", "--from", toys.folder, "--root", toys.root)
    assert "COMPLETE: Toy yard" in done
    assert "GOOD: all 2 images opened" in run("check", "toy_yard", "--root", toys.root)
    shown = run("show", "toy_yard", "--root", toys.root, "-o", tmp_path / "sheet.png")
    assert "1 of 1 images of train" in shown
    assert "recommended: data.num_workers=0" in run(
        *("speed", "toy_yard", "--root", toys.root, "--workers", 0, "--seconds", 0.01, "--batch-size", 1)
    )
