"""For each data set, the files of its archives arrive where the listing expects them, and no others."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sa2depth.data.frame import read_frame
from sa2depth.data.prepare import SplitState, execute, make_plan, what_is_missing
from sa2depth.data.prepare.archives import ZipSource
from sa2depth.data.prepare.sources import open_sources
from sa2depth.data.sets import diml, make_recipe, nyu, recipes, sunrgbd
from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.sets.kitti.official import official
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import ConfigError, DataError

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "samples"
CALIBRATION = "P_rect_02: 700 0 600 0 0 700 170 0 0 0 1 0\nP_rect_03: 701 0 601 0 0 701 171 0 0 0 1 0\n"


def pack(path, names, contents=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, (contents or {}).get(name.rpartition("/")[2], name))
    return path


def unpack(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def prepare(dataset, root, *paths, copy=False, **options):
    """Prepare, check that a second run has nothing to do, and return the recipe and the names below the root."""
    recipe = make_recipe(dataset, root, **options)
    outcome = execute(make_plan(recipe, open_sources(paths, recipe), copy=copy))
    assert not outcome.failures
    recipe = make_recipe(dataset, root, **options)
    assert make_plan(recipe, open_sources(paths, recipe), copy=copy).to_do == ()
    return recipe, sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def held_by(listing):
    """Files of a listing that exist."""
    return {path for frame in listing.frames for path in frame.files if path.exists()}


# NYU


def pair(folder, number):
    return [f"{folder}/rgb_{number:05d}.jpg", f"{folder}/sync_depth_{number:05d}.png"]


def test_nyu_sync(tmp_path):
    both = set(read_table("nyu_v2_train_36253")) & set(read_table("nyu_v2_train_24231"))
    scene, number = min(both)
    wanted = pair(scene, number)
    only_short = min(set(read_table("nyu_v2_train_24231")) - set(read_table("nyu_v2_train_36253")))
    others = [
        *pair(scene, 99999),
        f"{scene}/sync_depth_dense_{number:05d}.png",
        *pair(f"official_splits/train/{scene}", number),
        *pair(f"test/{scene}", number),
    ]
    names = [*wanted, *pair(*only_short)]
    archive = pack(tmp_path / "sync.zip", [*(f"nyu/sync/{name}" for name in names), *others])
    root = tmp_path / "nyu"
    recipe, found = prepare("nyu_sync", root, archive)
    assert found == sorted(f"sync/{name}" for name in names)
    assert held_by(nyu.sync(root)) == {root / "sync" / name for name in wanted}
    states = what_is_missing(recipe)
    assert [(state.files, len(state.missing)) for state in states] == [(72506, 72504), (48462, 48458)]
    assert states[1].origins == {"sync.zip": 48458}
    assert set(states[0].origins) == {"sync.zip", "the archive of NeWCRFs"}
    _, everything = prepare("nyu_sync", tmp_path / "all", archive, everything=True)
    assert everything == sorted(f"sync/{name}" for name in [*names, *pair(scene, 99999)])


def test_nyu_sync_stays_where_scenes_lie_in_the_root(tmp_path):
    scene, number = read_table("nyu_v2_train_36253")[0]
    root = unpack(tmp_path / "nyu", pair(scene, number)[:1])
    _, found = prepare("nyu_sync", root, unpack(tmp_path / "rest", pair(scene, number)[1:]))
    assert found == pair(scene, number)
    assert len(held_by(nyu.sync(root))) == 2


def test_one_list_of_nyu_sync_is_enough(tmp_path):
    lacks, whole = SplitState("36253", missing=(tmp_path,)), SplitState("24231")
    recipe = make_recipe("nyu_sync", tmp_path)
    assert recipe.enough([lacks, whole])
    assert not recipe.enough([lacks, lacks])
    assert not make_recipe("nyu_labelled", tmp_path).enough([lacks, whole])


def test_nyu_labelled_from_what_btss_script_made(tmp_path):
    frames = {split: read_table(table) for split, table in nyu.LABELLED_TABLES.items()}
    names = [
        name
        for split, pairs in frames.items()
        for scene, number in pairs
        for name in pair(f"official_splits/{split}/{scene}", number)
    ]
    archive = pack(tmp_path / "nyu.zip", [*names, "official_splits/test/kitchen/rgb_01448.jpg"])
    recipe, found = prepare("nyu_labelled", tmp_path / "nyu", archive)
    assert found == sorted(names)
    states = what_is_missing(recipe)
    assert [(state.frames, state.files, state.complete) for state in states] == [
        (795, 1590, True),
        (654, 1308, True),
    ]
    assert recipe.enough(states)
    (tmp_path / "nyu" / names[0]).unlink()
    (tmp_path / "nyu" / names[0]).symlink_to(tmp_path / "nowhere")
    assert what_is_missing(recipe)[0].missing == (tmp_path / "nyu" / names[0],)


# KITTI

DRIVE, TEST_DRIVE = "2011_09_26_drive_0001_sync", "2011_09_26_drive_0002_sync"


def recording(drive, camera="image_02", numbers=(5, 6)):
    return [f"{drive[:10]}/{drive}/{camera}/data/{number:010d}.png" for number in numbers]


def annotated(part, drive, camera="image_02", numbers=(5, 6)):
    return [f"{part}/{drive}/proj_depth/groundtruth/{camera}/{number:010d}.png" for number in numbers]


def scans(drive, numbers=(5, 6)):
    return [f"{drive[:10]}/{drive}/velodyne_points/data/{number:010d}.bin" for number in numbers]


@pytest.fixture
def kitti_archives(tmp_path):
    """KITTI's archives of a training drive and of a drive with test frames (6 and 9 are in the list)."""
    calib = ["calib_cam_to_cam.txt", "calib_velo_to_cam.txt", "calib_imu_to_velo.txt"]
    folder = tmp_path / "downloads"
    folder.mkdir()
    for drive, numbers in ((DRIVE, (0, 5, 6)), (TEST_DRIVE, (6, 7))):
        other = [f"{drive[:10]}/{drive}/oxts/data/0000000005.txt", *recording(drive, "image_00", numbers)]
        both = [*recording(drive, "image_02", numbers), *recording(drive, "image_03", numbers)]
        pack(folder / f"{drive}.zip", [*both, *scans(drive, numbers), *other])
    pack(folder / "2011_09_26_calib.zip", [f"2011_09_26/{name}" for name in calib], {calib[0]: CALIBRATION})
    val = "2011_09_26_drive_0002_sync"
    maps = [*annotated("train", DRIVE), *annotated("train", DRIVE, "image_03"), *annotated("val", val)]
    pack(folder / "data_depth_annotated.zip", maps)
    names = [f"{drive_camera}" for drive_camera in ("image_0000000005_image_02", "image_0000000011_image_02")]
    selection = "depth_selection/val_selection_cropped"
    pack(
        folder / "data_depth_selection.zip",
        [
            *(f"{selection}/image/{val}_{name}.png" for name in names),
            *(f"{selection}/groundtruth_depth/{val}_groundtruth_depth_{name[6:]}.png" for name in names),
            *(f"{selection}/intrinsics/{val}_{name}.txt" for name in names),
            *(f"{selection}/velodyne_raw/{val}_velodyne_raw_{name[6:]}.png" for name in names),
            "depth_selection/test_depth_prediction_anonymous/image/0000000000.png",
            "depth_selection/test_depth_prediction_anonymous/intrinsics/0000000000.txt",
            "depth_selection/test_depth_completion_anonymous/image/0000000000.png",
        ],
    )
    return folder


def test_kitti_eigen(kitti_archives, tmp_path):
    root = tmp_path / "kitti"
    recipe, found = prepare("kitti_eigen", root, kitti_archives)
    maps = [
        f"data_depth_annotated/{name}"
        for name in [*annotated("train", DRIVE), *annotated("val", TEST_DRIVE, numbers=(6,))]
    ]
    calib = ["2011_09_26/calib_cam_to_cam.txt", "2011_09_26/calib_velo_to_cam.txt"]
    assert found == sorted([*recording(DRIVE), *recording(TEST_DRIVE, numbers=(6,)), *maps, *calib])
    train, test = kitti.eigen(root), kitti.eigen(root, "test")
    assert held_by(train) == {root / name for name in [*recording(DRIVE), *maps[:2]]}
    assert held_by(test) == {root / name for name in [*recording(TEST_DRIVE, numbers=(6,)), *maps[2:]]}
    assert train.frames[0].intrinsics == (700, 700, 600, 170)
    states = what_is_missing(recipe)
    assert states[0].origins[f"{DRIVE}.zip"] == 98 - 2
    assert states[0].origins["data_depth_annotated.zip"] == 23158 - 2
    assert states[1].origins["2011_09_28_calib.zip"] == 1
    assert not recipe.enough(states)


def test_kitti_with_scans_and_with_everything(kitti_archives, tmp_path):
    _, found = prepare("kitti_eigen", tmp_path / "scans", kitti_archives, velodyne=True)
    assert [name for name in found if name.endswith(".bin")] == scans(DRIVE) + scans(TEST_DRIVE, (6,))
    _, found = prepare("kitti_eigen", tmp_path / "all", kitti_archives, everything=True)
    images = [
        name
        for drive, n in ((DRIVE, (0, 5, 6)), (TEST_DRIVE, (6, 7)))
        for c in "23"
        for name in recording(drive, f"image_0{c}", n)
    ]
    assert [name for name in found if "/data/" in name] == sorted(images)
    assert len([name for name in found if "groundtruth" in name]) == 6


@pytest.mark.parametrize("layout", ["merged", "official"])
def test_kitti_joins_a_tree_that_has_a_layout_already(kitti_archives, layout, tmp_path):
    root = tmp_path / "kitti"
    prefix = f"raw/2011_09_26/{DRIVE}" if layout == "merged" else f"train/{DRIVE}"
    unpack(root, [f"raw/{recording(DRIVE)[0]}", f"{prefix}/proj_depth/groundtruth/image_02/0000000006.png"])
    prepare("kitti_eigen", root, kitti_archives)
    found = held_by(kitti.eigen(root))
    assert {root / f"raw/{name}" for name in recording(DRIVE)} < found
    assert {root / f"{prefix}/proj_depth/groundtruth/image_02/000000000{n}.png" for n in (5, 6)} < found
    assert len(found) == 4


def test_kitti_from_an_unpacked_drive_with_jpegs(tmp_path):
    name = recording(DRIVE)[0].replace(".png", ".jpg")
    folder = unpack(tmp_path / "mine", [name]) / "2011_09_26" / DRIVE
    _, found = prepare("kitti_eigen", tmp_path / "kitti", folder)
    assert found == [name]
    assert (tmp_path / "kitti" / name).is_symlink()
    assert held_by(kitti.eigen(tmp_path / "kitti")) == {tmp_path / "kitti" / name}


def test_kitti_official(kitti_archives, tmp_path):
    root = tmp_path / "kitti"
    recipe, found = prepare("kitti_official", root, kitti_archives)
    assert len([name for name in found if name.startswith("depth_selection/val_selection_cropped/")]) == 6
    assert len([name for name in found if "anonymous" in name]) == 2
    assert not [
        name for name in found if TEST_DRIVE in name and "selection" not in name
    ]  # a drive of the validation
    assert [name for name in found if "/data/" in name] == recording(DRIVE) + recording(DRIVE, "image_03")
    train = official(root, "train")
    assert len(train.frames) == 4
    states = what_is_missing(recipe)
    assert [state.complete for state in states] == [True, False, False]
    assert states[1].origins == {"data_depth_selection.zip": 3000 - 6}
    assert states[2].origins == {"data_depth_selection.zip": 1000 - 2}
    assert held_by(official(root, "val")) == {root / name for name in found if "val_selection" in name}


def test_kitti_official_photographs_follow_maps_that_are_there_already(kitti_archives, tmp_path):
    root = tmp_path / "kitti"
    prepare("kitti_official", root, kitti_archives / "data_depth_annotated.zip")
    _, found = prepare("kitti_official", root, kitti_archives / f"{DRIVE}.zip")
    assert [name for name in found if "/data/" in name] == recording(DRIVE) + recording(DRIVE, "image_03")


# SUN RGB-D and DIML


def sun_names(entry):
    return [
        f"{entry.folder}/image/{entry.image}.jpg",
        f"{entry.folder}/depth/{entry.depth}.png",
        f"{entry.folder}/depth_bfx/{entry.depth}.png",
        f"{entry.folder}/intrinsics.txt",
    ]


def test_sunrgbd(tmp_path):
    first, last = sunrgbd.read_table()[0], sunrgbd.read_table()[-1]
    names = [*sun_names(first), *sun_names(last)]
    other = [
        "kv1/NYUdata/NYU9999/image/NYU9999.jpg",
        f"{first.folder}/scene.txt",
        f"{first.folder}/extrinsics/1.txt",
    ]
    archive = pack(tmp_path / "SUNRGBD.zip", [f"SUNRGBD/{name}" for name in [*names, *other]])
    root = tmp_path / "sunrgbd"
    recipe, found = prepare("sunrgbd", root, archive)
    assert found == sorted(f"SUNRGBD/{name}" for name in names)
    assert len(held_by(sunrgbd.listing(root))) == 6
    raw, _ = what_is_missing(recipe)
    assert (raw.files, len(raw.missing), raw.origins) == (15150, 15144, {"SUNRGBD.zip": 15144})
    _, found = prepare("sunrgbd", tmp_path / "all", archive, everything=True)
    assert "SUNRGBD/kv1/NYUdata/NYU9999/image/NYU9999.jpg" in found
    flat = unpack(tmp_path / "flat", names[:1])
    assert sorted(names) == prepare("sunrgbd", flat, archive)[1]


def test_diml(tmp_path):
    names = [f"outdoor/test/LR/{folder}/{n:03d}.png" for folder in ("outleft", "depthmap") for n in range(4)]
    sample = pack(tmp_path / "sample.zip", [*names, "outdoor/test/LR/outright/000.png", "outdoor/readme.txt"])
    loose = pack(
        tmp_path / "rec7.zip", [f"{folder}/{n:03d}.png" for folder in ("outleft", "depthmap") for n in (1, 2)]
    )
    folder = unpack(tmp_path / "rec8", ["outleft/1.png", "depthmap/1.png"])
    root = tmp_path / "diml"
    recipe, found = prepare("diml_outdoor", root, sample, loose, folder)
    short = [
        f"{rec}/{inner}/{n}.png"
        for rec, inner, n in [("rec7", i, n) for i in ("outleft", "depthmap") for n in ("001", "002")]
    ] + ["rec8/outleft/1.png", "rec8/depthmap/1.png"]
    assert found == sorted([*names, *short])
    assert len(diml.outdoor(root, "all").frames) == 7
    assert recipe.enough(what_is_missing(recipe))
    assert prepare("diml_outdoor", tmp_path / "b", folder / "outleft")[1] == ["rec8/outleft/1.png"]
    assert prepare("diml_outdoor", root, root / "rec7")[1] == found


def test_diml_in_both_resolutions_and_half_unpacked(tmp_path):
    names = [f"train/{size}/{folder}/1.png" for size in ("HR", "LR") for folder in ("outleft", "depthmap")]
    recipe, _ = prepare("diml_outdoor", tmp_path / "diml", pack(tmp_path / "x.zip", names))
    assert [state.complete for state in what_is_missing(recipe)] == [True, True]
    (tmp_path / "diml/train/HR/depthmap/1.png").unlink()
    high, low = what_is_missing(recipe)
    assert "needs a depth map" in high.problem
    assert (high.complete, low.complete) == (False, True)


# all


@pytest.mark.parametrize("dataset", sorted(recipes().keys() - {"diml_outdoor"}))
def test_every_listed_file_has_its_place(dataset, tmp_path):
    recipe = make_recipe(dataset, tmp_path)
    archive = ZipSource(tmp_path / "x.zip")
    count = 0
    for split in recipe.splits():
        try:
            listing = split()
        except DataError:
            assert dataset == "kitti_official"  # its training drives are searched
            continue
        for path in {path for frame in listing.frames for path in frame.files}:
            target = path.relative_to(tmp_path).as_posix()
            assert recipe.place(f"anywhere/{target}", archive) == target
            assert recipe.origin(path)
            count += 1
    assert count > 2000


def test_unknown_names_and_options(tmp_path):
    with pytest.raises(ConfigError, match="did you mean kitti_eigen"):
        make_recipe("kitti_eigne", tmp_path)
    with pytest.raises(ConfigError, match="sunrgbd has no option --velodyne"):
        make_recipe("sunrgbd", tmp_path, velodyne=True)
    with pytest.raises(ConfigError, match="choose raw or filled"):
        make_recipe("nyu_labelled", tmp_path, depth="dense")


@pytest.mark.parametrize("dataset", recipes())
def test_strange_archives_give_nothing(dataset, tmp_path):
    archive = pack(tmp_path / "x.zip", ["holiday/0001.jpg", "0000000005.png", "image_02/data/0000000005.png"])
    recipe = make_recipe(dataset, tmp_path / "root")
    assert make_plan(recipe, open_sources([archive], recipe)).steps == ()


# genuine files


@pytest.mark.real_data
@pytest.mark.parametrize("copy", [False, True])
def test_genuine_kitti_files(copy, tmp_path):
    root = tmp_path / "kitti"
    _, found = prepare("kitti_eigen", root, SAMPLES / "kitti", copy=copy, velodyne=True)
    assert all((root / name).is_symlink() != copy for name in found)
    frames = {frame.id: frame for frame in kitti.eigen(root).frames}
    sample = read_frame(frames[f"{DRIVE}/image_02/0000000005"])
    assert sample.image.shape == (375, 1242, 3)
    assert sample.depth.max() > 40
    assert sample.intrinsics[0, 0] == pytest.approx(721.5377)
    by_laser = {frame.id: frame for frame in kitti.eigen(root, truth="velodyne").frames}
    scan = read_frame(by_laser[f"{DRIVE}/image_02/0000000005"])
    both = (scan.depth > 0) & (sample.depth > 0)
    assert np.median(np.abs(scan.depth[both] - sample.depth[both])) < 0.1


@pytest.mark.real_data
def test_genuine_sun_and_nyu_files_also_through_a_tar(tmp_path):
    with tarfile.open(tmp_path / "SUNRGBD.tar.gz", "w:gz") as archive:
        archive.add(SAMPLES / "sunrgbd" / "SUNRGBD", "SUNRGBD")
    root = tmp_path / "sunrgbd"
    _, found = prepare("sunrgbd", root, tmp_path / "SUNRGBD.tar.gz")
    assert len(found) == 4
    frame = next(frame for frame in sunrgbd.listing(root).frames if frame.image.exists())
    assert 0.5 < np.median(read_frame(frame).depth) < 8
    root = tmp_path / "nyu"
    _, found = prepare("nyu_sync", root, SAMPLES / "nyu")
    frames = [frame for frame in nyu.sync(root).frames if frame.image.exists()]
    assert len(found) == 2 * len(frames) == 6
    assert read_frame(frames[0]).depth.shape == (480, 640)


def test_unreadable_folders_are_named(tmp_path, monkeypatch):
    folder = unpack(tmp_path / "x", ["outleft/1.png"])

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DataError, match="this folder cannot be read"):
        open_sources([folder], make_recipe("diml_outdoor", tmp_path / "root"))
