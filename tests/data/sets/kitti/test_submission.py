"""The zip for KITTI's server: written maps read back equal, and what the server refuses is refused here."""

import io
import re
import struct
import zipfile
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sa2depth.cli.data.submission import validate_submission as validate_command
from sa2depth.cli.data.submission import write_submission as write_command
from sa2depth.cli.friendly import friendly
from sa2depth.data.sets.kitti import submission
from sa2depth.data.sets.kitti.submission import encode, names, validate_submission, write_submission
from sa2depth.errors import ConfigError, DataError

SIZE = (352, 1216)


@pytest.fixture
def small(monkeypatch):
    """A benchmark of three images, 4x6: the rules are the same."""
    monkeypatch.setattr(submission, "COUNT", 3)
    monkeypatch.setattr(submission, "SIZE", (4, 6))


def depth_map(number=0, size=(4, 6)):
    return np.random.default_rng(number).uniform(2, 80, size).astype(np.float32)


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def archive(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files:
            file.writestr(name, data)
    return path


def good_files():
    return [(name, encode(depth_map(number))) for number, name in enumerate(names())]


def test_the_genuine_size(tmp_path):
    """500 maps of 352x1216, in any order, read back by another library."""
    order = np.random.default_rng(0).permutation(500)
    path = tmp_path / "deep" / "submission.zip"
    maps = ((int(number), np.full(SIZE, 2 + number / 7, np.float32)) for number in order)
    assert write_submission(path, maps) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["submission.zip"]
    with zipfile.ZipFile(path) as file:
        assert sorted(file.namelist()) == [f"{number:010d}.png" for number in range(500)]
        with Image.open(io.BytesIO(file.read("0000000123.png"))) as image:
            assert image.size == (1216, 352)
            assert np.array(image)[0, 0] == round((2 + 123 / 7) * 256)
    report = validate_submission(path)
    assert (report.valid, report.images, report.errors) == (True, 500, ())
    assert report.warnings == (
        "500 images (0000000000.png, 0000000001.png, 0000000002.png, 0000000003.png, 0000000004.png, ...) "
        "with one depth in all pixels",
    )


def test_pixels_are_rounded_and_sixteen_bits_of_one_channel(small):
    depth = depth_map()
    depth[0, :3] = 1 / 256, 255.99, 10.499 / 256
    data = encode(depth)
    assert data[24:26] == bytes([16, 0])
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, np.rint(depth.astype(np.float64) * 256))
    assert tuple(pixels[0, :3]) == (1, 65533, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0, 0.001, 256.0])
def test_depths_that_no_png_can_hold_are_refused(small, tmp_path, value):
    depth = depth_map()
    depth[1, 2] = value
    path = tmp_path / "s.zip"
    with pytest.raises(DataError, match=r"0000000001\.png: 1 of 24 depths cannot be written"):
        write_submission(path, [(0, depth_map()), (1, depth)])
    assert list(tmp_path.iterdir()) == []


def test_maps_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"expected depth of 352x1216 .* found 1x352x1216"):
        encode(np.ones((1, *SIZE), np.float32))


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ([0, 1], r"1 image \(0000000002\.png\) missing"),
        ([], "3 images .* missing"),
        ([0, 0, 1, 2], "test image 0 was given twice"),
        ([0, 1, 2, 3], "test image 3 is outside 0 to 2"),
        ([-1], "test image -1"),
    ],
)
def test_each_image_once(small, tmp_path, numbers, complaint):
    path = tmp_path / "s.zip"
    path.write_bytes(b"the old one")
    with pytest.raises(DataError, match=complaint):
        write_submission(path, [(number, depth_map(abs(number))) for number in numbers])
    assert path.read_bytes() == b"the old one"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_predictions_make_the_same_bytes(small, tmp_path):
    maps = [(number, depth_map(number)) for number in range(3)]
    one, two = (write_submission(tmp_path / f"{name}.zip", maps) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ConfigError, match=r"s\.zip"):
        write_submission(tmp_path / "s.tar", maps)


def test_a_good_zip_has_no_complaint(small, tmp_path):
    done = []
    report = validate_submission(archive(tmp_path / "s.zip", good_files()), done.append)
    assert (report.images, report.errors, report.warnings) == (3, (), ())
    assert done == [1, 2, 3]


def replaced(data):
    """Good files, with other contents in the second one: bytes, or a function of the good bytes."""
    files = good_files()
    name, good = files[1]
    files[1] = name, data(good) if callable(data) else data
    return files


def broken_checksum(good):
    return good[:-20] + bytes([good[-20] ^ 0xFF]) + good[-19:]


def palette(_):
    stream = io.BytesIO()
    Image.new("P", (6, 4)).save(stream, "png")
    return stream.getvalue()


def header(width, height, bits, colour):
    """A PNG header that states a size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


FAULTS = {
    "missing": (lambda f: f[1:], r"1 image \(0000000000\.png\) missing from the root"),
    "extra": (
        lambda f: [*f, ("notes.txt", b"x")],
        r"'notes\.txt': expected only 0000000000\.png to 0000000002",
    ),
    "beyond": (lambda f: [*f, ("0000000003.png", f[0][1])], r"'0000000003\.png': expected only"),
    "short name": (lambda f: [("0.png", f[0][1]), *f[1:]], r"'0\.png': expected only"),
    "folder": (lambda f: [(f"out/{n}", d) for n, d in f], r"folder 'out/' has 3 files: .* root of the zip"),
    "mac": (lambda f: [*f, ("__MACOSX/._0000000000.png", b"x")], r"folder '__MACOSX/' has 1 files"),
    "empty folder": (lambda f: [*f, ("empty/", b"")], r"folder 'empty/' has 0 files"),
}
CONTENTS = {
    "8 bits": (png(np.ones((4, 6), np.uint8)), "expected one channel of 16 bits, found grey of 8 bits"),
    "colour": (png(np.zeros((4, 6, 3), np.uint16)), "expected one channel of 16 bits, found RGB of 16 bits"),
    "palette": (palette, "expected one channel of 16 bits, found palette of 1 bits"),
    "size": (png(np.ones((6, 4), np.uint16)), r"expected 4x6 pixels \(height x width\), found 6x4"),
    "no png": (b"\xff\xd8 jpeg", "is not a PNG"),
    "empty": (b"", "is not a PNG"),
    "only a header": (header(6, 4, 16, 0), ".*damaged or ends early"),
    "cut off": (lambda good: good[:-30], ".*damaged or ends early"),
    "no end": (lambda good: good[:-12], ".*damaged or ends early"),
    "checksum": (broken_checksum, ".*damaged or ends early"),
    "zeros": (png(np.zeros((4, 6), np.uint16)), "all pixels are 0"),
    "huge": (bytes(8_000_001), "holds 8,000,001 bytes"),
}


@pytest.mark.parametrize("fault", [*FAULTS, *CONTENTS])
def test_faults_that_the_server_refuses_are_refused(small, tmp_path, fault):
    if fault in FAULTS:
        change, complaint = FAULTS[fault]
        files = change(good_files())
    else:
        files, complaint = replaced(CONTENTS[fault][0]), rf"0000000001\.png: {CONTENTS[fault][1]}"
    report = validate_submission(archive(tmp_path / "s.zip", files))
    assert not report.valid
    assert [error for error in report.errors if re.match(complaint, error)], report.errors


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(small, tmp_path):
    files = good_files()
    report = validate_submission(archive(tmp_path / "s.zip", [*files, files[0]]))
    assert report.errors == ("'0000000000.png' occurs more than once",)


def test_damaged_members_and_other_files(small, tmp_path):
    path = archive(tmp_path / "s.zip", good_files())
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") + 6
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    report = validate_submission(path)
    assert report.images == 2
    assert "0000000000.png: cannot be unpacked" in report.errors[0]
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="expected a zip archive"):
        validate_submission(path)
    with pytest.raises(DataError, match=r"missing\.zip: cannot read"):
        validate_submission(tmp_path / "missing.zip")


def test_oddities_are_warnings(small, tmp_path):
    holes = np.full((4, 6), 2560, np.uint16)
    holes[0, 0] = 0
    files = replaced(png(holes))
    files[2] = (files[2][0], png(np.full((4, 6), 2560, np.uint16)))
    report = validate_submission(archive(tmp_path / "s.zip", files))
    assert report.valid
    assert len(report.warnings) == 2
    assert "(0000000001.png) with pixels of 0" in report.warnings[0]
    assert "(0000000002.png) with one depth" in report.warnings[1]
    metres = [(name, png((depth_map(n)).astype(np.uint16))) for n, name in enumerate(names())]
    report = validate_submission(archive(tmp_path / "s.zip", metres))
    assert "metres times 256" in report.warnings[-1]


@pytest.fixture
def app():
    app = typer.Typer()
    app.command("write-submission")(friendly(write_command))
    app.command("validate-submission")(friendly(validate_command))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_validate_command(small, tmp_path, app):
    path = archive(tmp_path / "s.zip", good_files())
    result = app("validate-submission", path)
    assert result.exit_code == 0
    assert "ready to submit, 3 images" in result.stdout
    archive(path, good_files()[1:])
    result = app("validate-submission", path)
    assert result.exit_code == 1
    assert "not ready to submit, 1 error; 2 images are correct" in result.stdout
    assert "0000000000.png" in result.stderr
    assert app("validate-submission", tmp_path / "missing.zip").exit_code == 2


@pytest.fixture
def anonymous(tmp_path):
    """All 500 files by name, of which three are pictures; the others are never opened here."""
    folder = tmp_path / "kitti" / "depth_selection" / "test_depth_prediction_anonymous"
    for part, suffix in (("image", "png"), ("intrinsics", "txt")):
        (folder / part).mkdir(parents=True)
        for number in range(500):
            (folder / part / f"{number:010d}.{suffix}").touch()
    for number in range(3):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(
            folder / "image" / f"{number:010d}.png"
        )
    return tmp_path / "kitti"


@pytest.fixture
def three(monkeypatch):
    """The benchmark cut to the first three images, of 64x64."""
    from sa2depth.data.sets.kitti import official as kitti_official

    monkeypatch.setattr(kitti_official, "TEST_IMAGES", 3)
    monkeypatch.setattr(submission, "COUNT", 3)
    monkeypatch.setattr(submission, "SIZE", (64, 64))


def test_write_command(three, anonymous, tmp_path, app):
    import torch

    from sa2depth.infer import Predictor
    from sa2depth.models import create_model
    from sa2depth.weights import save_model

    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=80.0)
    checkpoint = save_model(model, tmp_path / "nano.safetensors")
    out = tmp_path / "s.zip"
    options = ("write-submission", "-c", checkpoint, "--root", anonymous, "-o", out, "--device", "cpu")
    result = app(*options)
    assert result.exit_code == 0, result.output
    assert "ready to submit, 3 images" in result.stdout
    image = anonymous / "depth_selection" / "test_depth_prediction_anonymous" / "image" / "0000000002.png"
    with zipfile.ZipFile(out) as file:
        pixels = cv2.imdecode(np.frombuffer(file.read("0000000002.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    flipped, plain = (Predictor(model, flip=flip)(image).depth for flip in (True, False))
    assert np.array_equal(pixels, np.rint(flipped.astype(np.float64) * 256))
    assert not np.array_equal(flipped, plain)

    assert app(*options).exit_code == 2  # an existing file is not replaced
    assert app(*options, "--force", "--no-flip").exit_code == 0
    with zipfile.ZipFile(out) as file:
        pixels = cv2.imdecode(np.frombuffer(file.read("0000000002.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(pixels, np.rint(plain.astype(np.float64) * 256))


def test_a_broken_model_writes_nothing(three, anonymous, tmp_path, app, monkeypatch):
    import sa2depth.infer
    import sa2depth.weights

    class Broken:
        def __init__(self, *_, **__):
            pass

        def __call__(self, image, id):
            return SimpleNamespace(depth=np.full((64, 64), np.nan, np.float32))

    monkeypatch.setattr(sa2depth.infer, "Predictor", Broken)
    monkeypatch.setattr(sa2depth.weights, "load_model", lambda *_, **__: None)
    out = tmp_path / "s.zip"
    result = app("write-submission", "-c", "x", "--root", anonymous, "-o", out)
    assert result.exit_code == 2
    assert "0000000000.png: 4,096 of 4,096 depths cannot be written, first nan m" in result.stderr
    assert not out.exists()


def test_missing_test_images_are_told_before_the_model_is_loaded(tmp_path, app):
    result = app(
        "write-submission", "-c", tmp_path / "absent.pth", "--root", tmp_path, "-o", tmp_path / "s.zip"
    )
    assert result.exit_code == 2
    assert "1,000 of 1,000 files are missing" in result.stderr
