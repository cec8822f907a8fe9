"""`sa2depth predict` and `data show` with some bad files: each is named, the others are done."""

import errno
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from typer.testing import CliRunner

from sa2depth.cli import app
from sa2depth.cli.inputs import find_images
from sa2depth.errors import DataError
from sa2depth.models import create_model
from sa2depth.weights import save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0)
    return save_model(model, tmp_path_factory.mktemp("weights") / "nano.safetensors")


@pytest.fixture
def photo():
    return Image.fromarray(load_sample_image("china.jpg")).resize((96, 64))


@pytest.fixture
def folder(tmp_path, photo):
    """Good and bad files side by side."""
    path = tmp_path / "Größe [1]"
    path.mkdir()
    wrong = struct.pack("<HHLHxx", 0x0112, 3, 1, 6) + struct.pack("<HHLhxx", 0x0128, 8, 1, -1)
    photo.save(path / "turned.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + wrong + bytes(4))
    photo.save(path / "good.jpg")
    (path / "cut.jpg").write_bytes((path / "good.jpg").read_bytes()[:1000])
    (path / "empty.png").write_bytes(b"")
    (path / "gone.jpg").symlink_to("nowhere.jpg")
    (path / "inner.jpg").mkdir()
    (path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    Image.fromarray(np.ones((4, 5), np.float32)).save(path / "floats.tif")
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(folder):
    return sorted(path.name for path in (folder / "out").iterdir())


def predict(*arguments, checkpoint):
    return run("predict", *arguments, "-c", checkpoint, "--formats", "npy", "--device", "cpu")


def test_bad_files_are_named_and_the_others_are_done(checkpoint, folder, tmp_path):
    result = predict(folder, "-o", tmp_path / "out", checkpoint=checkpoint)
    assert result.exit_code == 1
    assert "2 files of 2 images" in result.stdout
    assert written(tmp_path) == ["good_depth.npy", "turned_depth.npy"]
    assert np.load(tmp_path / "out/turned_depth.npy").shape == (96, 64)
    lines = result.stderr.splitlines()
    for name, words in {
        "cut.jpg": "broken file or another format (image file is truncated",
        "empty.png": "found an empty file",
        "gone.jpg": "a link to nowhere.jpg, which does not exist",
        "floats.tif": "a picture of floats has no known range",
    }.items():
        assert [line for line in lines if f"error: {folder / name}: " in line and words in line], name
    assert f"note: {folder}: left out files without an image suffix: film.mp4" in lines
    assert lines[-1] == "error: 4 of 6 images failed; they are named above"


def test_results_of_an_earlier_run_are_not_photographs(checkpoint, tmp_path, photo):
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "b_depth.png")  # despite its name this is a photograph
    for _ in range(2):
        result = run("predict", tmp_path, "-o", tmp_path, "-c", checkpoint)
        assert result.exit_code == 0, result.stderr
        assert "6 files of 2 images" in result.stdout
    left_out = "a_depth.png, a_depth_mm.png, b_depth_depth.png, b_depth_depth_mm.png"
    assert f"left out results of sa2depth predict: {left_out}" in result.stderr


def test_a_link_has_a_result_of_its_own(tmp_path, photo):
    photo.save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert [path.name for path in find_images([str(tmp_path), str(tmp_path / "a.png")])] == ["a.png", "b.png"]


def test_a_folder_of_folders_names_the_pattern(tmp_path, photo):
    (tmp_path / "day").mkdir()
    photo.save(tmp_path / "day/a.png")
    with pytest.raises(
        DataError, match=r"no images in this folder; give '.*/\*\*/\*' to search its 1 folders"
    ):
        find_images([str(tmp_path)])
    assert find_images([str(tmp_path / "**/*")]) == [tmp_path / "day/a.png"]


def test_large_files_need_a_smaller_size_or_a_higher_limit(checkpoint, tmp_path, photo):
    photo.save(tmp_path / "large.jpg")
    arguments = (tmp_path / "large.jpg", "-o", tmp_path / "out", "--max-megapixels", "0.003")
    result = predict(*arguments, checkpoint=checkpoint)
    assert result.exit_code == 1
    assert "64x96 pixels (height x width) are 0 megapixels, above the limit of 0.003" in result.stderr
    assert "--max-side 2000" in result.stderr
    result = predict(*arguments, "--max-side", "24", checkpoint=checkpoint)
    assert result.exit_code == 0, result.stderr
    assert np.load(tmp_path / "out/large_depth.npy").shape == (64, 96)
    result = predict(*arguments[:-1], "0", checkpoint=checkpoint)
    assert result.exit_code == 2
    assert "max_megapixels=0" in result.stderr


@pytest.mark.parametrize(
    "memory", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: 9 GB")]
)
def test_only_the_image_too_large_for_memory_fails(checkpoint, tmp_path, photo, monkeypatch, memory):
    from sa2depth.infer import Predictor

    for name in "ab":
        photo.save(tmp_path / f"{name}.png")
    call = Predictor.__call__

    def fail(self, image, **options):
        if image.name == "a.png":
            raise memory
        return call(self, image, **options)

    monkeypatch.setattr(Predictor, "__call__", fail)
    result = predict(tmp_path, "-o", tmp_path / "out", checkpoint=checkpoint)
    assert result.exit_code == 1
    assert (
        "a.png: the network needs more memory for this image than there is. Give --max-side" in result.stderr
    )
    assert written(tmp_path) == ["b_depth.npy"]


def test_a_full_disk_ends_the_run_and_counts_complete_files(checkpoint, tmp_path, photo, monkeypatch):
    for name in "abc":
        photo.save(tmp_path / f"{name}.png")
    save, calls = np.save, []

    def fail(stream, *arguments, **options):
        calls.append(stream)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(stream, *arguments, **options)

    monkeypatch.setattr(np, "save", fail)
    result = predict(tmp_path, "-o", tmp_path / "out", checkpoint=checkpoint)
    assert result.exit_code == 2
    assert (
        "out: cannot be written (No space left on device); the 1 files written before are complete"
        in result.stderr
    )
    assert written(tmp_path) == ["a_depth.npy"]


def test_only_the_image_with_too_long_a_name_fails(checkpoint, tmp_path, photo):
    photo.save(tmp_path / f"{'x' * 250}.png")
    photo.save(tmp_path / "y.png")
    result = predict(tmp_path, "-o", tmp_path / "out", checkpoint=checkpoint)
    assert result.exit_code == 1
    assert "too long to name its results: rename the image" in result.stderr
    assert written(tmp_path) == ["y_depth.npy"]


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3)])
def test_images_of_odd_sizes(checkpoint, tmp_path, photo, size):
    photo.resize(size).save(tmp_path / "odd.png")
    result = predict(tmp_path / "odd.png", "-o", tmp_path / "out", checkpoint=checkpoint)
    assert result.exit_code == 0, result.stderr
    assert np.load(tmp_path / "out/odd_depth.npy").shape == size[::-1]


def test_show_draws_what_can_be_read(tmp_path, photo):
    lines = ["image,depth"]
    for name in ("a", "b", "c"):
        photo.save(tmp_path / f"{name}.jpg")
        np.save(tmp_path / f"{name}.npy", np.ones((16, 24), np.float32))
        lines.append(f"{name}.jpg,{name}.npy")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "c.npy").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "my.csv").write_text("\n".join(lines))
    options = (f"data.test.list={tmp_path / 'my.csv'}", "data.test.scale=1", "-o", tmp_path / "sheet.png")
    result = run("data", "show", "custom_test", *options)
    assert result.exit_code == 1
    assert "1 of 3 images of test" in result.stdout
    assert "b.jpg: expected a readable photograph" in result.stderr
    assert "c.npy: expected a NumPy file, found something else or a damaged one" in result.stderr
    assert (tmp_path / "sheet.png").is_file()
