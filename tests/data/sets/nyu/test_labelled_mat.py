"""``nyu_depth_v2_labeled.mat``: its values arrive unchanged in the files that the BTS family reads."""

import importlib
import io
import tarfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from sa2depth.data.frame import read_frame
from sa2depth.data.io.depth_files import MILLIMETRE_PNG
from sa2depth.data.prepare import execute, make_plan, what_is_missing
from sa2depth.data.prepare.plan import State
from sa2depth.data.prepare.sources import open_sources
from sa2depth.data.sets import make_recipe, nyu
from sa2depth.data.sets.nyu import labelled_mat as nyu_mat
from sa2depth.errors import ConfigError, DataError

SHARED = Path(__file__).parents[5] / "shared" / "data"
TABLES = {
    "nyu_v2_test_654": (("kitchen", 0), ("kitchen", 1)),
    "nyu_v2_labelled_train_795": (("office_0003", 2), ("study_0001", 1448)),
}
NUMBERS = (0, 1, 2, 1448)


@pytest.fixture
def short_tables(monkeypatch):
    """Four images instead of 1,449."""
    nyu._frames.cache_clear()
    for module in (nyu, nyu_mat):
        monkeypatch.setattr(module, "read_table", TABLES.__getitem__)
    yield
    nyu._frames.cache_clear()


def picture(number):
    """Smooth colours, so that JPEG keeps them; a white frame as in the genuine images."""
    y, x = np.mgrid[:480, :640]
    image = np.stack([x // 4, y // 3, (x + y + number) // 8 % 256], axis=2).astype(np.uint8)
    framed = np.full_like(image, 255)
    framed[7:474, 7:632] = image[7:474, 7:632]
    return framed


def depth_of(number, kind):
    rng = np.random.default_rng([number, kind == "depths"])
    depth = rng.uniform(0.5, 9.9, (480, 640)).astype(np.float32)
    if kind == "rawDepths":
        depth[100:200, 50:80] = 0
        depth[0, :3] = np.nan, np.inf, -1
    return depth


def write_mat(path, depths=depth_of, image=picture):
    """Write a file like MATLAB's: columns before rows, chunks of several images, a user block in front."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, shape in nyu_mat.SHAPES.items():
            kind = np.uint8 if name == "images" else np.float32
            stored = file.create_dataset(
                name, shape, kind, chunks=(3, *shape[1:]), compression="gzip", compression_opts=1
            )
            for number in NUMBERS:
                stored[number] = (
                    image(number).transpose(2, 1, 0) if name == "images" else depths(number, name).T
                )
    return path


@pytest.fixture(scope="module")
def mat(tmp_path_factory):
    return write_mat(tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat")


def planned(root, path, **options):
    recipe = make_recipe("nyu_labelled", root, **options)
    return make_plan(recipe, open_sources([path], recipe))


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*") if path.is_file()
    }


def test_every_image_goes_to_its_split_and_scene(mat, short_tables, tmp_path):
    root = tmp_path / "nyu"
    outcome = execute(planned(root, mat.parent), workers=3)
    assert (outcome.written, outcome.failures) == (8, [])
    states = what_is_missing(make_recipe("nyu_labelled", root))
    assert [(state.frames, state.complete) for state in states] == [(2, True), (2, True)]
    for split in ("train", "test"):
        for frame in nyu.labelled(root, split).frames:
            number = int(frame.id[-5:])
            sample = read_frame(frame)
            truth = depth_of(number, "rawDepths")
            valid = np.isfinite(truth) & (truth > 0)
            assert np.array_equal(sample.depth > 0, valid)
            assert np.abs(sample.depth - truth)[valid].max() <= 0.0005 + 1e-6
            difference = np.abs(sample.image.astype(int) - picture(number))
            assert difference[7:474, 7:632].max() <= 8
            assert difference[16:464, 16:624].mean() < 1
            inside = np.zeros((480, 640), bool)
            inside[7:474, 7:632] = True
            assert sample.image[~inside].max() <= 8


def test_raw_or_filled_by_choice_and_never_mixed(mat, short_tables, tmp_path):
    root = tmp_path / "nyu"
    execute(planned(root, mat))
    raw = files(root)
    assert planned(root, mat).to_do == ()
    filled = planned(root, mat, depth="filled")
    assert filled.states == {State.WHOLE: 4, State.DIFFERS: 4}  # photographs stay
    execute(filled)
    target = root / "official_splits/test/kitchen/sync_depth_00001.png"
    depth = MILLIMETRE_PNG(target, (480, 640))
    assert np.abs(depth - depth_of(1, "depths")).max() <= 0.0005 + 1e-6
    assert planned(root, mat, depth="filled").to_do == ()
    execute(planned(root, mat))
    assert files(root) == raw


def test_incomplete_files_and_files_from_elsewhere_are_made_again(mat, short_tables, tmp_path):
    root = tmp_path / "nyu"
    execute(planned(root, mat))
    whole = files(root)
    folder = root / "official_splits/test/kitchen"
    half = folder / "rgb_00000.jpg"
    half.write_bytes(half.read_bytes()[:5000])
    (folder / "sync_depth_00001.png").write_bytes(b"")
    cv2.imwrite(str(folder / "sync_depth_00000.png"), np.ones((480, 640), np.uint16))
    assert planned(root, mat).states == {State.WHOLE: 5, State.DIFFERS: 3}
    execute(planned(root, mat))
    assert files(root) == whole
    wrong = bytearray(whole["official_splits/test/kitchen/sync_depth_00000.png"])
    wrong[len(wrong) // 2] ^= 1
    (folder / "sync_depth_00000.png").write_bytes(wrong)
    outcome = execute(planned(root, mat), verify=True)
    assert (outcome.verified, outcome.repaired) == (7, 1)
    assert files(root) == whole


def test_files_say_what_they_are():
    mark = nyu_mat.mark_of("rawDepths", 7)
    assert "rawDepths[7]" in mark
    data = nyu_mat.encode_depth(np.full((640, 480), 1.2347, np.float32), mark)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.size, image.mode, image.text["Source"]) == ((640, 480), "I;16", mark)
        assert set(np.unique(image)) == {1235}  # rounded, not truncated
    data = nyu_mat.encode_image(np.full((3, 640, 480), 200, np.uint8), mark)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.size, image.info["comment"].decode()) == ((640, 480), mark)
        assert image.layer[0][1:3] == image.layer[1][1:3]  # colours are not subsampled
    with pytest.raises(DataError, match=r"up to 65.535, found 5000"):
        nyu_mat.encode_depth(np.full((640, 480), 5000.0, np.float32), mark)


def test_depth_in_other_units_is_named(short_tables, tmp_path):
    path = write_mat(
        tmp_path / "nyu.mat", lambda number, kind: depth_of(number, kind) * (1000 if number == 1 else 1)
    )
    outcome = execute(planned(tmp_path / "root", path))
    assert outcome.written == 7
    assert f"{path}: its member 'rawDepths[1]'" in outcome.failures[0]
    assert "expected metres" in outcome.failures[0]


def test_other_files_and_damaged_ones(mat, tmp_path, monkeypatch):
    cut = tmp_path / "cut.mat"
    cut.write_bytes(mat.read_bytes()[:200_000])
    with pytest.raises(DataError, match=r"cut.mat: expected nyu_depth_v2_labeled.mat .*Download it again"):
        planned(tmp_path / "root", cut)
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["images"] = np.zeros((3, 3, 4, 4), np.uint8)
    with pytest.raises(
        DataError, match=r"expected 'images' of shape \(1449, 3, 640, 480\), found shape \(3, 3, 4, 4\)"
    ):
        planned(tmp_path / "root", tmp_path / "other.mat")
    with pytest.raises(DataError, match="expected one of a zip or tar archive, a folder, found"):
        open_sources([mat], make_recipe("nyu_sync", tmp_path / "root"))

    def no_h5py(name):
        raise ImportError(name)

    monkeypatch.setattr(nyu_mat, "import_module", no_h5py)
    with pytest.raises(ConfigError, match=r"pip install 'sa2depth\[data\]'"):
        planned(tmp_path / "root", mat)
    assert importlib.import_module("h5py") is h5py


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["raw", "filled"])
def test_genuine_depth_of_image_0(kind, short_tables, tmp_path):
    names = {"rawDepths": "00000_rawdepth_01mm.png", "depths": "00000_depth_filled_01mm.png"}
    tenths = {key: cv2.imread(str(SHARED / "samples/nyu/labelled" / file), -1) for key, file in names.items()}
    with tarfile.open(SHARED / "nyu_labelled_test.tar") as tar:
        photo = np.array(Image.open(tar.extractfile("test/kitchen/rgb_00000.jpg")))
    path = write_mat(
        tmp_path / "nyu.mat", lambda number, key: tenths[key].astype(np.float32) / 10000, lambda number: photo
    )
    root = tmp_path / "nyu"
    execute(planned(root, path, depth=kind))
    sample = read_frame(
        next(frame for frame in nyu.labelled(root, "test").frames if frame.id.endswith("00000"))
    )
    genuine = tenths[nyu_mat.DATASETS[kind]]
    assert np.array_equal(sample.depth == 0, genuine == 0)
    assert (sample.depth == 0).any() == (kind == "raw")
    assert np.abs(sample.depth - genuine / 10000).max() <= 0.0005 + 1e-6
    assert np.abs(sample.image[8:473, 8:631].astype(int) - photo[8:473, 8:631]).mean() < 0.7
