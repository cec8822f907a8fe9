"""Evaluation: frames of several sizes, missing truth, and the written files and printed words."""

import csv
import json
import sys
from dataclasses import replace
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from agreement import assert_same_scores
from sa2depth import eval as evaluation_program
from sa2depth.data.sample import RawSample, camera_matrix
from sa2depth.data.splits.tables import entries_without_truth, read_table
from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics import aggregate, evaluate_image, load_protocol, predict_frame
from sa2depth.models.sa2depth import DepthOutput
from sa2depth.report import depth_grid
from sa2depth.run import baseline

pytestmark = [pytest.mark.xdist_group("train"), pytest.mark.slow]  # uses the tiny training

SYNTHETIC = ("protocol=synthetic", "data=synthetic", "data.num_workers=0", "trainer=cpu")
SIZES = {"2011_09_26": (375, 1242), "2011_09_30": (370, 1226), "2011_09_28": (370, 1224)}


class Made:
    """A source of made-up samples, one of each size."""

    def __init__(self, sizes, without_truth=0):
        self.sizes, self.without_truth = sizes, without_truth
        self.ids = [f"place/{index}" for index in range(len(sizes))]

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        depth = rng.uniform(1, 8, self.sizes[index]).astype(np.float32)
        return RawSample(image, depth, camera_matrix(50.0, 50.0, 20.0, 20.0), self.ids[index])

    def describe(self):
        return f"{len(self)} made-up images"


class Brightness(nn.Module):
    """A quick network: depth by colour, and a ramp that mirroring does not undo."""

    encoder = nn.Identity()

    def forward(self, image):
        ramp = torch.linspace(0, 30, image.shape[-1])
        return DepthOutput(5 + 40 * image[:, :1] + ramp, torch.ones(len(image), 1))


@pytest.fixture
def made(monkeypatch):
    """Overrides that replace the test images by a `Made` source."""

    def use(*sizes, without_truth=0):
        module = ModuleType("made_up")
        module.source = lambda: Made(sizes, without_truth)
        monkeypatch.setitem(sys.modules, "made_up", module)
        return (*SYNTHETIC, "~data.test", "+data.test={_target_:made_up.source,_partial_:true}")

    return use


@pytest.fixture
def predictions(tmp_path):
    """Folder of predictions that have a given relative error everywhere."""

    def write(source, errors):
        for index, error in enumerate(errors):
            path = tmp_path / "predictions" / f"{source.ids[index]}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, source[index].depth * np.float32(1 + error))
        return f"predictions={tmp_path / 'predictions'}"

    return write


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- pictures


def test_the_pictures_are_those_of_the_worst_the_best_and_some_between(
    made, predictions, evaluate_here, tmp_path
):
    sizes = [(32, 48)] * 15
    errors = [0.01 * (1 + (7 * index) % 15) for index in range(15)]
    source = Made(sizes)
    document = evaluate_here(*made(*sizes), predictions(source, errors))
    listed = {kind: [] for kind in ("worst", "best", "spread")}
    for picture in document["pictures"]:
        listed[picture["kind"]].append(picture)
        assert (tmp_path / "here" / picture["file"]).is_file()
        assert picture["abs_rel"] == pytest.approx(errors[source.ids.index(picture["id"])], rel=1e-5)
    order = sorted(range(15), key=errors.__getitem__)
    assert [p["id"] for p in listed["worst"]] == [source.ids[i] for i in order[::-1][:6]]
    assert [p["id"] for p in listed["best"]] == [source.ids[i] for i in order[:6]]
    assert [p["id"] for p in listed["spread"]] == [source.ids[i] for i in (0, 2, 5, 8, 11, 14)]
    assert [p["file"] for p in listed["worst"]][:2] == ["pictures/worst_1.png", "pictures/worst_2.png"]
    # the picture shows the image that it names
    worst = order[-1]
    sample = source[worst]
    title = f"abs_rel {listed['worst'][0]['abs_rel']:.3f}\n{sample.id}"
    guess = sample.depth * np.float32(1 + errors[worst])
    expected = depth_grid([sample.image], [sample.depth], [guess], 10.0, tmp_path / "one.png", titles=[title])
    assert expected.read_bytes() == (tmp_path / "here/pictures/worst_1.png").read_bytes()


def test_the_worst_images_and_the_circumstances_are_printed(tiny_run):
    folder, done = tiny_run
    rows = sorted(read_csv(folder / "per_image.csv"), key=lambda row: -float(row["abs_rel"]))
    printed = done.stdout.split("worst images:")[1].splitlines()[1:4]
    for row, line in zip(rows, printed, strict=False):
        assert line.split() == [row["id"], "abs_rel", f"{float(row['abs_rel']):.4f}"]
    for words in (
        *("7 evaluated", "without truth", "empty masks", "0 pixels in 0 images", "0.001-10 m", "whole image"),
        *("7 images of 64x64: rows 0-63, columns 0-63", "flip averaging", "7 of 64x64", "32-true"),
        *("checkpoints/best.ckpt", "by true depth", "by_depth.csv", "pictures"),
    ):
        assert words in done.stdout, words
    document = json.loads((folder / "metrics.json").read_text())
    assert (document["device"], document["precision"]) == ("CPU", "32-true")
    assert document["checkpoint"].endswith("checkpoints/best.ckpt")
    assert len(document["pictures"]) == 18
    assert sum(row["pixels"] for row in document["by_depth"]) <= sum(int(row["pixels"]) for row in rows)


# ---------------------------------------------------------------- counts


def test_images_without_truth_are_counted_and_more_or_fewer_are_refused(
    made, predictions, evaluate_here, capsys
):
    options = (*made(*[(32, 48)] * 3, without_truth=2), predictions(Made([(32, 48)] * 3), [0.1] * 3))
    document = evaluate_here(*options, "protocol.expected_images=3", "protocol.images_without_truth=2")
    assert document["images_without_truth"] == 2
    assert document["complete"] is True
    assert document["protocol"]["images_without_truth"] == 2
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["without", "truth", "2"] in told
    for expected in (0, 1, 3):
        with pytest.raises(DataError, match=rf"{expected} images without ground truth, but 2"):
            evaluate_here(*options, "protocol.expected_images=3", f"protocol.images_without_truth={expected}")


def test_an_evaluation_of_nothing_fails(program, made, evaluate_here, tmp_path):
    with pytest.raises(DataError, match="no image to evaluate"):
        evaluate_here(*made(), f"predictions={tmp_path}")
    done = program("sa2depth.eval", f"predictions={tmp_path}", *SYNTHETIC, "data.test=null", cwd=tmp_path)
    assert done.returncode == 2
    assert "no image to evaluate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_part_of_the_split_does_not_pass_for_the_whole(tiny_run, made, evaluate_here, capsys):
    model = tiny_run[0] / "model.safetensors"
    options = (*made(*[(32, 64)] * 3), "data.eval_batch_size=1", "trainer.limit_test_batches=2")
    document = evaluate_here(f"checkpoint={model}", *options)
    assert (document["evaluated_images"], document["split_images"]) == (2, 3)
    assert document["complete"] is False
    assert "NOT THE WHOLE SPLIT of 3" in capsys.readouterr().out


# ---------------------------------------------------------------- sizes


@pytest.mark.code_path
def test_batches_of_equal_sizes_score_as_single_images(tiny_run, made, evaluate_here, tmp_path):
    model = tiny_run[0] / "model.safetensors"
    options = (f"checkpoint={model}", *made(*[(40, 70)] * 5), "protocol.flip=true")
    single = evaluate_here(*options, "data.eval_batch_size=1", folder=tmp_path / "single")
    batched = evaluate_here(*options, "data.eval_batch_size=3", folder=tmp_path / "batched")
    assert_same_scores(batched["metrics"], single["metrics"])
    assert batched["input_sizes"] == {"64x96": 5}
    assert batched["frames"]["40x70"]["images"] == 5


def test_of_many_sizes_the_first_are_printed_and_all_are_stored(made, predictions, evaluate_here, capsys):
    sizes = [(32 + i, 48) for i in range(8)]
    document = evaluate_here(*made(*sizes), predictions(Made(sizes), [0.1] * 8))
    assert document["frames"].keys() == {f"{height}x48" for height, _ in sizes}
    printed = capsys.readouterr().out
    assert "1 images of 37x48: rows 0-36, columns 0-47" in printed
    assert "37x48" in printed
    assert "38x48" not in printed
    assert "and 2 more sizes, see metrics.json" in printed


def test_images_of_different_sizes_cannot_share_a_batch(tiny_run, made, evaluate_here):
    model = tiny_run[0] / "model.safetensors"
    with pytest.raises(DataError, match=r"eval_batch_size=1"):
        evaluate_here(f"checkpoint={model}", *made((40, 70), (32, 64)), "data.eval_batch_size=2")


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """``(data folder, ids)`` of three made-up frames of Eigen's test list, of days with images of their own size."""
    root = tmp_path_factory.mktemp("data")
    ids, rng = [], np.random.default_rng(0)
    measured = [
        e for e in read_table("kitti_eigen_test") if e not in entries_without_truth("kitti_eigen_test")
    ]
    for day, size in SIZES.items():
        scene, number = next(entry for entry in measured if entry[0].startswith(day))
        drive, camera = scene.split("/")
        image = root / "kitti" / day / scene / "data" / f"{number:010d}.png"
        depth = root / "kitti" / drive / "proj_depth/groundtruth" / camera / image.name
        for path in (image, depth):
            path.parent.mkdir(parents=True)
        values = rng.uniform(2, 70, size) * (rng.uniform(size=size) < 0.2)
        cv2.imwrite(str(image), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        cv2.imwrite(str(depth), (values * 256).astype(np.uint16))
        matrix = "P_rect_02: 7.2e+02 0 6.0e+02 0 0 7.2e+02 1.7e+02 0 0 0 1 0"
        (root / "kitti" / day / "calib_cam_to_cam.txt").write_text(matrix)
        ids.append(f"{drive}/{camera}/{number:010d}")
    return root, sorted(ids)


def kitti_options(kitti, protocol):
    root, ids = kitti
    return (
        *("data=kitti_eigen", f"protocol={protocol}", "trainer=cpu", f"paths.data_dir={root}"),
        *(f"data.test.ids=[{','.join(ids)}]", "data.num_workers=0"),
        *("protocol.expected_images=null", "protocol.images_without_truth=0", "data.eval_batch_size=1"),
    )


@pytest.mark.parametrize(
    ("protocol", "boxes"),
    [
        ("kitti_eigen_garg", {"352x1216": (3, 143, 349, 43, 1172)}),
        (
            "kitti_eigen_garg_full",
            {
                "370x1224": (1, 151, 366, 43, 1180),
                "370x1226": (1, 151, 366, 44, 1181),
                "375x1242": (1, 153, 371, 44, 1197),
            },
        ),
    ],
)
def test_kitti_frames_of_several_sizes(kitti, evaluate_here, monkeypatch, tmp_path, protocol, boxes):
    model = Brightness()
    monkeypatch.setattr(evaluation_program, "load_model", lambda *args, **kwargs: model)
    document = evaluate_here("checkpoint=brightness", *kitti_options(kitti, protocol))
    found = {
        size: (frame["images"], *(frame["crop_box"][side] for side in ("top", "bottom", "left", "right")))
        for size, frame in document["frames"].items()
    }
    assert found == boxes
    assert document["native_sizes"] == {"375x1242": 1, "370x1226": 1, "370x1224": 1}
    assert document["input_sizes"] == {"352x1216": 3}
    assert document["protocol"]["name"].startswith(f"{protocol} (changed: expected_images")
    rules = load_protocol(protocol)
    rows = read_csv(tmp_path / "here/per_image.csv")
    for row, identity in zip(rows, kitti[1], strict=True):
        image, truth = kitti_frame(kitti[0], identity)
        depth = predict_frame(lambda shown: model(shown).depth, image, rules)
        if rules.frame:
            top, left = truth.shape[0] - 352, int((truth.shape[1] - 1216) / 2)
            truth = truth[top:, left : left + 1216]
        expected = evaluate_image(depth, truth, rules)
        assert row["id"] == identity
        assert int(row["pixels"]) == expected["pixels"] > 10_000
        assert float(row["abs_rel"]) == pytest.approx(expected["abs_rel"], rel=1e-9)


def kitti_frame(root, identity):
    """``image (1, 3, H, W)`` in [0, 1] and ``depth (H, W)`` metres, read without the package."""
    drive, camera, number = identity.split("/")
    image = cv2.imread(str(root / "kitti" / drive[:10] / drive / camera / "data" / f"{number}.png"))
    depth = cv2.imread(
        str(root / "kitti" / drive / "proj_depth/groundtruth" / camera / f"{number}.png"),
        cv2.IMREAD_UNCHANGED,
    )
    tensor = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    return tensor, (depth / 256).astype(np.float32)


@pytest.mark.parametrize("cut", [True, False])
def test_kitti_predictions_of_the_image_or_of_its_frame(kitti, evaluate_here, tmp_path, cut):
    root, ids = kitti
    for identity in ids:
        _, truth = kitti_frame(root, identity)
        guess = np.where(truth > 0, truth * 1.1, 5).astype(np.float32)
        left = int((guess.shape[1] - 1216) / 2)
        path = tmp_path / "guess" / f"{identity.replace('/', '_')}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, guess[-352:, left : left + 1216] if cut else guess)
    options = kitti_options(kitti, "kitti_eigen_garg")
    document = evaluate_here(f"predictions={tmp_path / 'guess'}", *options)
    assert document["metrics"]["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert document["frames"]["352x1216"]["images"] == 3
    assert document["input_sizes"] == document["protocol"]["flip"] == "not applicable"


# ---------------------------------------------------------------- stages


def test_the_seconds_of_an_evaluation(made, predictions, evaluate_here, tmp_path, capsys):
    sizes = [(32, 48)] * 3
    document = evaluate_here(*made(*sizes), predictions(Made(sizes), [0.1] * 3))
    expected = ["set-up", "scoring", "pictures", "tables", "rest", "total"]
    assert sorted(document["stages_s"]) == sorted(expected)
    assert f"total {document['stages_s']['total']:.1f} s" in capsys.readouterr().out


# ---------------------------------------------------------------- baseline


def test_the_baseline_is_scored_under_the_frame_of_the_protocol():
    source = Made([(40, 70)] * 3)
    rules = replace(load_protocol("synthetic"), frame=(32, 64))
    found = baseline.median_baseline(source, source, rules)
    maps = np.stack([source[i].depth[8:, 3:67] for i in range(3)])
    rows = [evaluate_image(np.median(maps, axis=0), truth, rules) for truth in maps]
    assert found["abs_rel"] == pytest.approx(aggregate(rows, rules)["abs_rel"], rel=1e-6)


def test_the_baseline_of_many_maps_takes_some_from_all_over(monkeypatch):
    monkeypatch.setattr(baseline, "MAPS", 2)
    rules = load_protocol("synthetic")
    source = Made([(40, 70)] * 5)
    found = baseline.median_baseline(source, source, rules)
    median = (source[0].depth + source[4].depth) / 2
    rows = [evaluate_image(median, source[i].depth, rules) for i in range(5)]
    assert found["maps"] == 2
    assert found["abs_rel"] == pytest.approx(aggregate(rows, rules)["abs_rel"], rel=1e-6)


def test_maps_of_different_sizes_have_no_median_and_it_is_said():
    source = Made([(40, 70), (40, 72)])
    assert "not_run" in baseline.median_baseline(source, source, load_protocol("synthetic"))
    with pytest.raises(ShapeError):
        baseline.median_baseline(
            Made([(40, 70)]), Made([(20, 20)]), replace(load_protocol("synthetic"), frame=(32, 64))
        )
