"""Other people's predictions: finding the file of each image, reading it, and refusing bad ones."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch

from agreement import assert_same_scores
from sa2depth import load_model
from sa2depth.errors import ConfigError, DataError
from sa2depth.metrics import Protocol
from sa2depth.run.predictions import PredictionReader, find_files
from sa2depth.scenes import SyntheticScenes

pytestmark = pytest.mark.xdist_group("train")  # uses the tiny training

SCENES = {"seed": 2, "height": 64, "width": 64, "kind": "streets"}
DATA = (
    *("protocol=synthetic", "data=synthetic", "data.train.kind=streets", "data.test.count=7"),
    *("data.train.height=64", "data.train.width=64", "data.num_workers=0"),
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def protocol(**changes):
    return Protocol(**{"name": "test", "version": 1, "min_depth": 0.1, "max_depth": 10.0, **changes})


# ---------------------------------------------------------------- which file


def test_three_names_answer_for_an_image(tmp_path):
    touch(tmp_path, "a/b/1.png", "a_b_2.npy", "3.png", "a/extra.txt")
    found = find_files(tmp_path, ["a/b/1", "a/b/2", "a/b/3"])
    assert found == {
        "a/b/1": tmp_path / "a/b/1.png",
        "a/b/2": tmp_path / "a_b_2.npy",
        "a/b/3": tmp_path / "3.png",
    }


def test_what_predict_writes_is_found(tmp_path):
    touch(
        tmp_path,
        "a_1_depth.npy",
        "a_1_depth_mm.png",
        "a_1_depth.png.txt",
        "2_depth_mm.png",
        "a/3.npy",
        "a/3_depth.npy",
    )
    assert find_files(tmp_path, ["a/1", "a/2", "a/3"]) == {
        "a/1": tmp_path / "a_1_depth.npy",
        "a/2": tmp_path / "2_depth_mm.png",
        "a/3": tmp_path / "a/3.npy",
    }


def test_the_last_part_of_an_id_answers_only_if_no_other_image_has_it(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError) as error:
        find_files(tmp_path, ["a/1", "b/1", "b/2"])
    message = str(error.value)
    assert "2 of 3 images have no prediction" in message
    assert "a/1.png or a_1.png" in message
    assert "2 have a file with the last part of their id, which other images share" in message


def test_missing_files_are_counted_and_the_first_are_named(tmp_path):
    touch(tmp_path, "7.npy", "unrelated.png")
    with pytest.raises(DataError) as error:
        find_files(tmp_path, [f"a/{i}" for i in range(20)])
    message = str(error.value)
    assert "19 of 20 images have no prediction" in message
    for words in ("a/0.png or a_0.png or 0.png (or .npy)", "and 14 more", "found 2", "unrelated.png"):
        assert words in message
    with pytest.raises(DataError, match=r"predictions=.*nowhere.*expected a folder"):
        find_files(tmp_path / "nowhere", ["a"])


def test_two_files_for_one_image_are_refused(tmp_path):
    touch(tmp_path, "a/1.png", "a/1.npy", "a/2.png")
    with pytest.raises(DataError, match=r"1 images have more than one file(.|\n)*a/1: a/1.png, a/1.npy"):
        find_files(tmp_path, ["a/1", "a/2"])
    touch(tmp_path / "other", "a/1.png", "a_1.png")
    with pytest.raises(DataError, match=r"a/1: a/1.png, a_1.png"):
        find_files(tmp_path / "other", ["a/1"])


def test_one_file_for_two_images_is_refused(tmp_path):
    touch(tmp_path, "a_1.png")
    with pytest.raises(DataError, match=r"a_1.png: a/1, a_1"):
        find_files(tmp_path, ["a/1", "a_1"])


# ---------------------------------------------------------------- what is in it


def test_a_png_needs_its_scale_and_zero_is_no_prediction(tmp_path):
    path = tmp_path / "a.png"
    raw = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 10
    cv2.imwrite(str(path), raw)
    with pytest.raises(ConfigError, match=r"1 predictions are 16-bit PNG.*a\.png.*prediction_scale=256"):
        PredictionReader().check([path], protocol())
    reader = PredictionReader(units_per_metre=256)
    reader.check([path], protocol())
    depth = reader(path, (64, 64), protocol()).depth[0, 0].numpy()
    assert np.isnan(depth[0, 0])
    np.testing.assert_allclose(depth.ravel()[1:], raw.ravel()[1:] / 256, rtol=1e-6)


def test_a_scale_without_a_png_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"prediction_scale=256 is for PNG"):
        PredictionReader(256.0).check([tmp_path / "a.npy"], protocol())


@pytest.mark.parametrize("scale", [0, -1, float("inf"), float("nan"), True, "a lot"])
def test_a_scale_is_a_positive_number(tmp_path, scale):
    with pytest.raises(ConfigError, match=r"prediction_scale=.*positive number"):
        PredictionReader(scale).check([tmp_path / "a.png"], protocol())


def test_arrays_are_metres_and_keep_what_is_not_finite(tmp_path):
    path = tmp_path / "a.npy"
    values = np.random.default_rng(0).uniform(0.5, 9, (8, 9))
    values[2, 3], values[4, 5] = np.nan, np.inf
    for stored in (values, values.astype(np.float32), values[None], values[None, None]):
        np.save(path, stored)
        read = PredictionReader()(path, (8, 9), protocol()).depth[0, 0].numpy()
        np.testing.assert_array_equal(read, values.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.ones((4, 4), np.uint16), r"expected \(H, W\) floating-point metres, found uint16"),
        (np.ones((4, 4, 3)), r"found float64 of shape \(4, 4, 3\)"),
        (np.ones(4), r"shape \(4,\)"),
        (np.array([{}], dtype=object), "a damaged file or another format"),
        (b"", "a damaged file or another format"),
        (b"not numpy", "a damaged file or another format"),
    ],
)
def test_other_arrays_are_refused_by_name(tmp_path, content, words):
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=rf"bad\.npy: .*{words}"):
        PredictionReader()(path, (4, 4), protocol())


@pytest.mark.parametrize("eight_bit", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint16)])
def test_coloured_and_8_bit_pngs_are_refused_by_name(tmp_path, eight_bit):
    path = tmp_path / "bad.png"
    cv2.imwrite(str(path), eight_bit)
    with pytest.raises(DataError, match=r"bad\.png: expected a 16-bit single-channel PNG"):
        PredictionReader(256)(path, (4, 4), protocol())


def test_native_predictions_are_cut_and_framed_ones_are_taken_as_they_are(tmp_path):
    path, rules = tmp_path / "a.npy", protocol(frame=(32, 64))
    whole = np.random.default_rng(0).uniform(1, 9, (40, 75)).astype(np.float32)
    np.save(path, whole)
    cut = PredictionReader()(path, (40, 75), rules)
    np.testing.assert_array_equal(cut.depth[0, 0], whole[8:, 5:69])
    np.save(path, whole[8:, 5:69])
    framed = PredictionReader()(path, (40, 75), rules)
    assert torch.equal(framed.depth, cut.depth)
    assert not cut.resized
    assert not framed.resized


def test_other_sizes_are_refused_unless_it_is_said_what_they_show(tmp_path):
    path, rules = tmp_path / "a.npy", protocol(frame=(32, 64))
    np.save(path, np.tile(np.linspace(1, 2, 38, dtype=np.float32), (20, 1)))
    with pytest.raises(DataError, match=r"a\.npy: expected .* 40x75 or, as cut, 32x64, found 20x38"):
        PredictionReader()(path, (40, 75), rules)
    with pytest.raises(ConfigError, match=r"prediction_resize=true could mean two things"):
        PredictionReader(resize=True).check([path], rules)
    with pytest.raises(ConfigError, match=r"prediction_resize=bicubic: choose"):
        PredictionReader(resize="bicubic").check([path], rules)
    native = PredictionReader(resize="native")(path, (40, 75), rules)
    frame = PredictionReader(resize="frame")(path, (40, 75), rules)
    assert native.resized
    assert frame.resized
    assert native.depth.shape == frame.depth.shape == (1, 1, 32, 64)
    # the whole width shows in the one, a part of it in the other
    assert native.depth.amax() - native.depth.amin() < frame.depth.amax() - frame.depth.amin()
    assert frame.depth[0, 0, 0, [0, -1]].tolist() == pytest.approx([1, 2])
    whole = PredictionReader(resize=True)
    whole.check([path], protocol())
    assert whole(path, (40, 75), protocol()).depth.shape == (1, 1, 40, 75)


# ---------------------------------------------------------------- through the program


@pytest.fixture(scope="module")
def predicted(tiny_run, tmp_path_factory):
    """Depth of the seven test scenes by the tiny training's model, as .npy, and the scenes' ids."""
    folder, _ = tiny_run
    model, scenes = load_model(folder / "model.safetensors").eval(), SyntheticScenes(count=7, **SCENES)
    out = tmp_path_factory.mktemp("predicted")
    for index in range(7):
        image = torch.from_numpy(scenes[index].image).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            np.save(out / f"{scenes[index].id}.npy", model(image).depth[0, 0].numpy())
    return out


def read_table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_files_score_as_the_checkpoint_that_wrote_them(predicted, tiny_run, program, tmp_path):
    done = program("sa2depth.eval", f"predictions={predicted}", *DATA, "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    network, files = (read_table(run / "per_image.csv") for run in (tiny_run[0], tmp_path / "out"))
    assert len(files) == 7
    for one, other in zip(network, files, strict=True):
        assert one["id"] == other["id"]
        # the network ran on batches of two there and on single images here
        assert_same_scores(*({key: value for key, value in r.items() if key != "id"} for r in (other, one)))
    document, trained = (
        json.loads((run / "metrics.json").read_text()) for run in (tmp_path / "out", tiny_run[0])
    )
    assert document["protocol"]["flip"] == document["input_sizes"] == "not applicable"
    assert str(predicted) in document["predictions"]
    assert "7 .npy" in document["predictions"]
    assert [p["id"] for p in document["pictures"]] == [p["id"] for p in trained["pictures"]]
    for picture in document["pictures"]:
        assert (tmp_path / "out" / picture["file"]).is_file()
    assert "flip averaging" in done.stdout
    assert "not applicable" in done.stdout
    assert "these predictions" in done.stdout


def test_png_predictions_through_the_program(predicted, evaluate_here, tmp_path):
    for path in predicted.glob("*.npy"):
        raw = np.rint(np.load(path) * 1000).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"{path.stem}.png"), raw)
    touch(tmp_path, "unrelated.png")
    with pytest.raises(ConfigError, match="prediction_scale"):
        evaluate_here(f"predictions={tmp_path}", *DATA)
    as_png = evaluate_here(f"predictions={tmp_path}", "prediction_scale=1000", *DATA)
    as_npy = evaluate_here(f"predictions={predicted}", *DATA)
    assert "1 other files belong to no image" in as_png["predictions"]
    assert_same_scores(as_png["metrics"], as_npy["metrics"])
    assert as_png["metrics"] != as_npy["metrics"]


def test_holes_in_a_prediction_are_counted(predicted, evaluate_here, tmp_path):
    for path in predicted.glob("*.npy"):
        np.save(tmp_path / path.name, np.load(path))
    first = sorted(tmp_path.glob("*.npy"))[0]
    holed = np.load(first)
    holed[10, 10:13] = np.nan
    np.save(first, holed)
    document = evaluate_here(f"predictions={tmp_path}", *DATA)
    assert document["nonfinite_pixels"] == 3
    assert document["nonfinite_ids"] == [first.stem]


def test_a_broken_or_a_wrong_file_ends_the_evaluation_with_its_name(predicted, evaluate_here, tmp_path):
    for path in predicted.glob("*.npy"):
        np.save(tmp_path / path.name, np.load(path))
    broken = sorted(tmp_path.glob("*.npy"))[4]
    broken.write_bytes(b"half")
    with pytest.raises(DataError, match=broken.name):
        evaluate_here(f"predictions={tmp_path}", *DATA)
    np.save(broken, np.ones((32, 32), np.float32))
    with pytest.raises(DataError, match=rf"{broken.name}: expected .* 64x64, found 32x32"):
        evaluate_here(f"predictions={tmp_path}", *DATA)
    document = evaluate_here(f"predictions={tmp_path}", "prediction_resize=true", *DATA)
    assert document["predictions"].endswith("1 resized")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "you gave neither"),
        (("checkpoint=a.ckpt", "predictions=b"), "you gave both"),
        (("checkpoint=a.ckpt", "prediction_scale=256"), "prediction_scale=256.* is for predictions"),
        (("checkpoint=a.ckpt", "prediction_scale=0"), "prediction_scale=0.* is for predictions"),
        (("checkpoint=a.ckpt", "prediction_resize=native"), "prediction_resize=native is for predictions"),
    ],
)
def test_checkpoint_and_predictions_exclude_each_other(evaluate_here, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_here(*options, *DATA)


# ---------------------------------------------------------------- a truth with fewer pixels than its image


def test_a_prediction_has_the_size_of_the_image_or_of_a_smaller_truth(tmp_path):
    whole = np.arange(8 * 16, dtype=np.float32).reshape(8, 16) + 1
    np.save(tmp_path / "image.npy", whole)
    np.save(tmp_path / "truth.npy", whole[::4, ::4])
    np.save(tmp_path / "other.npy", whole[::2, ::2])
    read = PredictionReader()
    brought = read(tmp_path / "image.npy", (8, 16), protocol(), (2, 4))
    assert brought.resized
    # bilinear at the centres of the truth's pixels: the mean of the four pixels around them
    wanted = whole.reshape(2, 4, 4, 4)[:, 1:3, :, 1:3].mean((1, 3))
    np.testing.assert_allclose(brought.depth[0, 0].numpy(), wanted, rtol=1e-6)
    kept = read(tmp_path / "truth.npy", (8, 16), protocol(), (2, 4))
    assert not kept.resized
    assert np.array_equal(kept.depth[0, 0].numpy(), whole[::4, ::4])
    with pytest.raises(DataError, match=r"other\.npy: .*image, 8x16, or of its depth map, 2x4, found 4x8"):
        read(tmp_path / "other.npy", (8, 16), protocol(), (2, 4))
    assert PredictionReader(resize="native")(
        tmp_path / "other.npy", (8, 16), protocol(), (2, 4)
    ).depth.shape == (1, 1, 2, 4)


@pytest.mark.parametrize("content", [b"PK\x03\x04 no archive", b"\x93NUMPY\x01\0\x10\0{'descr'", b""])
def test_a_damaged_prediction_is_named(tmp_path, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npy: expected a NumPy array of metres"):
        PredictionReader()(tmp_path / "bad.npy", (8, 16), protocol())
