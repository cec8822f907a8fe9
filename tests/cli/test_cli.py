"""The command as users type it: a real photo in, files out, which are read again."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from sklearn.datasets import load_sample_image
from typer.testing import CliRunner

from sa2depth.cli import app
from sa2depth.cli.inputs import find_images, parse_size
from sa2depth.errors import ConfigError, DataError
from sa2depth.infer import Predictor
from sa2depth.infer.writers import read_millimetres
from sa2depth.models import create_model
from sa2depth.version import __version__
from sa2depth.weights import load_model, read_checkpoint, save_model
from sa2depth.weights.official import official_name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0)
    return save_model(model, tmp_path_factory.mktemp("weights") / "nano.safetensors")


@pytest.fixture(scope="module")
def released(checkpoint):
    state = load_model(checkpoint).state_dict()
    path = checkpoint.with_name("released.pth")
    torch.save({"model": {f"module.{official_name(name)}": t for name, t in state.items()}}, path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two small real photos, a broken one, and a file that is not an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("china", "flower"):
        image = Image.fromarray(load_sample_image(f"{name}.jpg")).resize((101, 67))
        image.save(folder / f"{name}.jpg", quality=95)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_predict_a_real_photo(checkpoint, tmp_path):
    photo = tmp_path / "china.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(photo, quality=95)
    out = tmp_path / "out"
    result = run(
        "predict", photo, "-o", out, "--checkpoint", checkpoint, "--max-side", 160, "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert "3 files of 1 images" in result.stdout
    names = ["china_depth.npy", "china_depth.png", "china_depth_mm.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    metres = np.load(out / names[0])
    assert metres.shape == (427, 640)
    assert metres.dtype == np.float32
    assert 0.1 <= metres.min() < metres.max() <= 8.0
    assert np.abs(read_millimetres(out / names[2]).astype(float) - metres).max() <= 0.0005 + 1e-6
    with Image.open(out / names[1]) as color:
        assert (color.size, color.mode) == ((640, 427), "RGB")
        assert color.text["Depth-Range"] == "0.1 8"
    expected = Predictor(load_model(checkpoint), max_side=160)(photo).depth
    np.testing.assert_array_equal(metres, expected)


def test_options_reach_the_predictor(checkpoint, photos, tmp_path):
    def depth(*options):
        out = tmp_path / "-".join(["out", *options]).replace("/", "_")
        result = run(
            "predict", photos / "china.jpg", "-o", out, "-c", checkpoint, "--formats", "npy", *options
        )
        assert result.exit_code == 0, result.output
        assert [path.name for path in out.iterdir()] == ["china_depth.npy"]
        return np.load(out / "china_depth.npy")

    plain = depth()
    assert plain.shape == (67, 101)
    for options in (["--flip"], ["--size", "64x96"], ["--max-side", "50"], ["--precision", "bf16"]):
        other = depth(*options)
        assert other.shape == (67, 101)
        assert not np.array_equal(plain, other), options


def test_color_range_and_map(checkpoint, photos, tmp_path):
    def picture(*options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        result = run(
            "predict", photos / "china.jpg", "-o", out, "-c", checkpoint, "--formats", "color", *options
        )
        assert result.exit_code == 0, result.output
        with Image.open(out / "china_depth.png") as image:
            return np.array(image), image.text["Depth-Range"]

    plain, _ = picture()
    ranged, said = picture("--range", "1.5", "6")
    assert said == "1.5 6"
    assert not np.array_equal(plain, ranged)
    assert not np.array_equal(plain, picture("--colormap", "magma")[0])


def test_folders_patterns_and_equal_names(checkpoint, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.open(photos / "china.jpg").save(other / "china.png")
    out = tmp_path / "out"
    result = run(
        "predict",
        photos,
        other / "*.png",
        photos / "china.jpg",
        "-o",
        out,
        "-c",
        checkpoint,
        "--formats",
        "npy",
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "flower_depth.npy", "other_china_depth.npy", "photos_china_depth.npy",
    ]  # fmt: skip


def test_broken_image_is_named_and_the_others_are_done(checkpoint, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    out = tmp_path / "out"
    result = run("predict", photos, "-o", out, "-c", checkpoint)
    assert result.exit_code == 1
    assert "bad.jpg" in result.stderr
    assert "1 of 3 images failed" in result.stderr
    assert "Traceback" not in result.output
    assert len(list(out.iterdir())) == 6


def test_strict_stops_at_the_first_broken_image(checkpoint, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    out = tmp_path / "out"
    result = run("predict", photos, "-o", out, "-c", checkpoint, "--strict")
    assert result.exit_code == 2
    assert "bad.jpg" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "absent.safetensors"], "no checkpoint at absent.safetensors"),
        (["--checkpoint", "sa2depth_t"], "no weights are published for 'sa2depth_t'"),
        (["--size", "480"], "480x640"),
        (["--size", "0x640"], "480x640"),
        (["--size", "100000x100000"], "too large; each side may have up to 99999 pixels"),
        (["--formats", "exr"], "formats must be any of color, mm, npy"),
        (["--precision", "int8"], "fp32 or bf16"),
        (["--device", "abacus"], "is not a device"),
        (["--range", "5", "1"], "from near to far"),
        (["--colormap", "beige"], "beige"),
        (["--max-depth", "10"], "trained with max_depth 8 m"),
    ],
)
def test_mistakes_are_one_message(checkpoint, photos, tmp_path, arguments, message):
    given = ["predict", photos / "china.jpg", "-o", tmp_path / "out", "--checkpoint", checkpoint, *arguments]
    result = run(*given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_released_file_needs_and_takes_the_range(released, photos, tmp_path):
    given = ["predict", photos / "china.jpg", "-o", tmp_path / "out", "-c", released]
    result = run(*given)
    assert result.exit_code == 2
    assert "min_depth" in result.stderr
    result = run(*given, "--min-depth", "0.1", "--max-depth", "8")
    assert result.exit_code == 0, result.output


def test_output_that_cannot_be_written(checkpoint, photos, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("predict", photos, "-o", tmp_path / "file", "-c", checkpoint)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_convert_a_released_file(checkpoint, released, tmp_path):
    target = tmp_path / "converted.safetensors"
    result = run("convert", released, target, "--min-depth", "0.1", "--max-depth", "8")
    assert result.exit_code == 0, result.output
    model, original = load_model(target), load_model(checkpoint)
    count = len(original.state_dict())
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    for text in ("sa2depth_nano", "(released)", f"{count} of {count} matched", parameters, "0.1 to 8 m"):
        assert text in result.stdout
    assert all(torch.equal(t, original.state_dict()[name]) for name, t in model.state_dict().items())
    assert model.spec == original.spec
    assert read_checkpoint(target).extra == {"converted_from": "released.pth", "source_kind": "released"}


def test_convert_does_not_overwrite_unasked(checkpoint, tmp_path):
    target = tmp_path / "new.safetensors"
    assert run("convert", checkpoint, target).exit_code == 0
    again = run("convert", checkpoint, target)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run("convert", checkpoint, target, "--force").exit_code == 0
    result = run("convert", checkpoint, tmp_path / "new.pth")
    assert result.exit_code == 2
    assert "new.safetensors" in result.stderr


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"sa2depth {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["convert", "-h"], ["--version"]])
def test_help_is_instant(arguments):
    code = (
        "import sys\nfrom sa2depth.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'timm', 'numpy', 'cv2', 'hydra', 'lightning', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_bugs_keep_their_traceback(checkpoint, photos, tmp_path, monkeypatch):
    def bug(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("sa2depth.infer.Predictor.__call__", bug)
    result = run("predict", photos, "-o", tmp_path / "out", "-c", checkpoint)
    assert isinstance(result.exception, ZeroDivisionError)


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.jpg", "c.txt", "sub/d.jpg", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*arguments):
        return [path.name for path in find_images([str(tmp_path / argument) for argument in arguments])]

    assert names("") == ["a.jpg", "b.PNG", "odd[1].jpg"]
    assert names("**/*.jpg") == ["a.jpg", "odd[1].jpg", "d.jpg"]
    assert names("b.PNG", "", "a.jpg") == ["b.PNG", "a.jpg", "odd[1].jpg"]
    assert names("odd[1].jpg") == ["odd[1].jpg"]
    assert names("absent.jpg", "c.txt") == ["absent.jpg", "c.txt"]
    (tmp_path / "empty").mkdir()
    for argument in ("empty", "*.tiff"):
        with pytest.raises(DataError, match="no image"):
            names(argument)


def test_parse_size():
    assert parse_size(None) is None
    assert parse_size("480x640") == parse_size(" 480X640 ") == (480, 640)
    assert parse_size("00480x99999") == (480, 99999)
    for text in ("480", "480x", "480x640x3", "-1x5", "0x5", "5x000", "axb"):
        with pytest.raises(ConfigError, match="HEIGHTxWIDTH"):
            parse_size(text)
    for text in ("100000x5", "5x100000", f"5x{'9' * 5000}"):
        with pytest.raises(ConfigError, match="too large"):
            parse_size(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", ""], "--models is empty: choose any of nano, t, s, l"),
        (["--what", ","], "--what is empty: choose any of operators"),
        (["--precision", ""], "--precision is empty: choose any of fp32"),
        (["--backends", ""], "--backends is empty: choose any of auto, torch"),
        (
            ["--models", "nano", "--what", "operators"],
            "operators are not measured at the sizes of nano: choose t, s or l",
        ),
    ],
)
def test_an_empty_benchmark_is_refused(arguments, message):
    result = run("bench", "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_app_is_what_the_script_calls():
    assert isinstance(app, typer.Typer)
