"""Reading image files: any fault is reported with the file's name and the reason, and nothing else is raised."""

import errno
import io
import logging
import os
import random
import struct

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_image

from sa2depth import image_files
from sa2depth.data.io.images import read_mask, read_rgb
from sa2depth.errors import ConfigError, DataError, UserError
from sa2depth.infer import to_tensor
from sa2depth.infer.images import to_picture

READERS = (read_rgb, read_mask, to_tensor)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_image("china.jpg")).resize((96, 64))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def entry(tag, kind, count, value):
    return struct.pack("<HHL", tag, kind, count) + value.ljust(4, b"\0")


def exif(*entries, count=None):
    """A block of EXIF data with these entries of 12 bytes; ``count`` may be wrong."""
    body = struct.pack("<H", len(entries) if count is None else count) + b"".join(entries)
    return b"II*\0" + struct.pack("<L", 8) + body + struct.pack("<L", 0)


TURNED = entry(0x0112, 3, 1, struct.pack("<H", 6))
WRONG = {
    "resolution unit of -1": exif(TURNED, entry(0x0128, 8, 1, struct.pack("<h", -1))),
    "maker of no length": exif(entry(0x010F, 2, 2**31, struct.pack("<L", 2**31)), TURNED),
    "resolution beyond the end": exif(TURNED, entry(0x011A, 5, 1, struct.pack("<L", 10**6))),
    "unknown type": exif(entry(0x0128, 99, 1, b""), TURNED),
    "ends after the orientation": exif(TURNED, count=9),
}
UNKNOWN = {
    "ends before the orientation": exif(entry(0x0128, 3, 1, b"\2"), count=9)[:30],
    "no byte order": b"XX" + exif(TURNED)[2:],
    "only a few bytes": b"II*\0",
    "directory beyond the end": b"II*\0" + struct.pack("<L", 10**6),
    "orientation of text": exif(entry(0x0112, 2, 4, b"top\0")),
}
PREFIX = {"JPEG": b"Exif\0\0"}
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("block", WRONG)
def test_a_readable_orientation_is_applied_whatever_else_is_wrong(tmp_path, photo, caplog, kind, block):
    path = tmp_path / f"bad.{FORMATS[kind]}"
    path.write_bytes(encoded(photo, kind, exif=PREFIX.get(kind, b"") + WRONG[block]))
    with Image.open(path) as image:
        stored = np.array(image.convert("RGB"))
    assert np.array_equal(read_rgb(path), np.rot90(stored, -1))
    assert np.array_equal((to_tensor(path)[0].permute(1, 2, 0) * 255).round().byte(), np.rot90(stored, -1))
    assert to_tensor(Image.open(path)).shape == (1, 3, 96, 64)
    assert not caplog.records


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("block", UNKNOWN)
def test_without_it_the_photograph_is_taken_as_stored_and_one_line_says_so(
    tmp_path, photo, caplog, kind, block
):
    path = tmp_path / f"bad.{FORMATS[kind]}"
    path.write_bytes(encoded(photo, kind, exif=PREFIX.get(kind, b"") + UNKNOWN[block]))
    notes = []
    assert read_rgb(path, notes.append).shape == (64, 96, 3)
    assert len(notes) == 1
    assert notes[0].startswith(f"{path}: its EXIF block is damaged (")
    assert "used as stored" in notes[0]
    with caplog.at_level(logging.WARNING, "sa2depth"):
        for _ in range(3):  # epochs
            to_tensor(path)
    assert [record.getMessage() for record in caplog.records] == notes


def test_orientation_of_xmp_still_counts(tmp_path, photo):
    path = tmp_path / "a.png"
    fields = PngInfo()
    fields.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="8"/>')
    photo.save(path, pnginfo=fields, exif=exif(entry(0x0128, 3, 1, b"\2")))
    assert read_rgb(path).shape == (96, 64, 3)


def samples(photo):
    tags = Image.Exif()
    tags[0x0112], tags[0x0128], tags[0x010F] = 6, 2, "maker"
    grey = Image.fromarray(np.array(photo.convert("L")).astype(np.uint16) * 257)
    more = {"save_all": True, "append_images": [photo.rotate(9)]}
    return {
        "photo.jpg": encoded(photo, "JPEG", exif=tags),
        "progressive.jpg": encoded(photo, "JPEG", progressive=True, exif=tags),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "photo.png": encoded(photo, "PNG", exif=tags),
        "deep.png": encoded(grey, "PNG"),
        "palette.png": encoded(photo.quantize(16), "PNG", transparency=3),
        "alpha.png": encoded(photo.convert("RGBA"), "PNG"),
        "photo.webp": encoded(photo, "WEBP", exif=tags),
        "film.webp": encoded(photo, "WEBP", **more),
        "photo.tif": encoded(photo, "TIFF", exif=tags),
        "packed.tif": encoded(photo, "TIFF", exif=tags, compression="tiff_lzw"),
        "photo.gif": encoded(photo, "GIF"),
        "film.gif": encoded(photo, "GIF", **more),
        "photo.bmp": encoded(photo, "BMP"),
        "phone.mpo": encoded(photo, "MPO", **more),
    }


def damaged(data, rng):
    """A file that is cut short, or has a few changed bytes anywhere, at its head or in its EXIF block."""
    where = rng.choice(["cut", "head", "exif", "anywhere"])
    if where == "cut":
        return data[: rng.randrange(len(data))]
    block = max(data.find(b"II*\0"), data.find(b"MM\0*"), 0)
    first, length = {"head": (0, 400), "exif": (block, 140), "anywhere": (0, len(data))}[where]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        changed[min(first + rng.randrange(length), len(data) - 1)] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_file_of_any_format_is_read_or_refused_by_name(tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    read = refused = 0
    for name, data in samples(photo).items():
        path = tmp_path / name
        for number in range(12):
            path.write_bytes(damaged(data, rng))
            for reader in READERS:
                try:
                    reader(path)
                    read += 1
                except UserError as error:
                    refused += 1
                    named = str(path) in str(error)
                    assert named, (name, number, reader)
    assert read > 100
    assert refused > 100


@pytest.mark.parametrize(
    "error", [struct.error("bad"), SyntaxError("bad"), KeyError("bad"), RuntimeError("bad")]
)
@pytest.mark.parametrize("reader", READERS)
def test_whatever_a_decoder_raises(tmp_path, photo, monkeypatch, reader, error):
    path = tmp_path / "bad.png"
    photo.save(path)

    def load(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(DataError, match=r"bad\.png: expected a readable (photograph|mask) .*bad"):
        reader(path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "there is not enough memory to decode this photograph"),
        (OSError(errno.EIO, "Input/output error"), r"this photograph cannot be read \(Input/output error\)"),
    ],
)
def test_faults_of_the_machine_are_not_the_files(tmp_path, photo, monkeypatch, error, words):
    path = tmp_path / "good.png"
    photo.save(path)

    def load(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(DataError, match=rf"good\.png: {words}"):
        to_tensor(path)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
KINDS = {
    "empty.jpg": (b"", "found an empty file"),
    "text.jpg": ("Grüße, no picture".encode(), "found text"),
    "phone.heic": (HEIC, "found a HEIC photograph, which is not supported: export it as JPEG"),
    "phone.jpg": (HEIC, "found a HEIC photograph"),
    "film.mp4": (b"\0\0\0\x18ftypisom" + bytes(40), "found a video: extract its frames first"),
    "film.avi": (b"RIFF\x10\0\0\0AVI LIST" + bytes(40), "found a video"),
    "page.jpg": (b"<!DOCTYPE html><html>", "found a web page: the download failed"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
    "array.png": (b"\x93NUMPY\x01\0", "found a NumPy array"),
    "paper.jpg": (b"%PDF-1.7\n", "found a PDF document"),
    "packed.jpg": (b"PK\x03\x04" + bytes(30), "found an archive: unpack it"),
    "noise.jpg": (bytes(range(7, 200)), "broken file or another format .it does not begin like"),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_of_other_kinds_are_told_apart(tmp_path, name):
    data, words = KINDS[name]
    (tmp_path / name).write_bytes(data)
    for reader in READERS:
        with pytest.raises(DataError, match=rf"{name}: .*{words}"):
            reader(tmp_path / name)


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    cases = {
        "folder.jpg": "found a folder of this name",
        "link.jpg": r"a link to .*gone\.jpg, which does not exist",
        "pipe.jpg": "found a pipe, a device or another special file",  # reading it would wait forever
        "absent.jpg": "there is no such",
        "a" * 300 + ".jpg": "cannot be read .File name too long",
    }
    for name, words in cases.items():
        for reader in READERS:
            with pytest.raises(DataError, match=words):
                reader(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path, photo, monkeypatch):
    path = tmp_path / "private.png"
    photo.save(path)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(
        DataError, match=r"private\.png: this photograph cannot be read \(Permission denied\)"
    ):
        read_rgb(path)


def test_the_thumbnail_of_raw_data_is_no_photograph(tmp_path, photo):
    photo.save(tmp_path / "a.tif", tiffinfo={50706: b"\1\4\0\0"})
    (tmp_path / "b.nef").write_bytes(encoded(photo, "TIFF"))
    for name in ("a.tif", "b.nef"):
        with pytest.raises(DataError, match=rf"{name}: .*raw camera data"):
            to_tensor(tmp_path / name)


def test_of_several_frames_the_first_is_taken_and_one_line_says_so(tmp_path, photo, caplog):
    for name, data in samples(photo).items():
        (tmp_path / name).write_bytes(data)
        with caplog.at_level(logging.WARNING, "sa2depth"):
            assert to_tensor(tmp_path / name).shape in {(1, 3, 64, 96), (1, 3, 96, 64)}
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(": ")[0].rpartition("/")[2] for line in said] == ["film.webp", "film.gif"]
    assert all("several frames or pages; only the first one is used" in line for line in said)


@pytest.fixture
def small_limit(monkeypatch):
    """A limit below 6,144 pixels and above a quarter of them; Pillow's own limit is even lower."""
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "0.002")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)


@pytest.mark.parametrize("reader", READERS)
def test_the_limit_is_named_with_how_to_raise_it(tmp_path, photo, small_limit, monkeypatch, reader):
    path = tmp_path / "large.png"
    photo.save(path)
    words = r"large\.png: 64x96 pixels .* above the limit of 0\.002, .*SA2DEPTH_MAX_MEGAPIXELS=1"
    with pytest.raises(DataError, match=words):
        reader(path)
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "1")
    reader(path)  # although it is above Pillow's
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.parametrize("value", ["much", "0", "-3", "nan"])
def test_a_limit_that_means_nothing(monkeypatch, value):
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, value)
    with pytest.raises(ConfigError, match=rf"SA2DEPTH_MAX_MEGAPIXELS={value}: expected a positive number"):
        image_files.megapixel_limit()
    assert image_files.megapixel_limit(5) == 5


MODES = {
    "JPEG": "RGB", "PNG": "RGB", "WEBP": "RGB", "TIFF": "RGB", "GIF": "P", "BMP": "L",
}  # fmt: skip


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("turned", [False, True])
def test_large_files_are_read_reduced_where_less_is_wanted(tmp_path, photo, monkeypatch, kind, turned):
    large = photo.resize((480, 318), Image.Resampling.BICUBIC).convert(MODES[kind])
    tags = Image.Exif()
    tags[0x0112] = 6 if turned and kind in ("JPEG", "PNG", "WEBP", "TIFF") else 1
    path = tmp_path / f"large.{kind.lower()}"
    large.save(path, **({"exif": tags} if kind not in ("GIF", "BMP") else {}))
    whole = to_tensor(path)
    height, width = whole.shape[-2:]
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "0.05")
    with pytest.raises(DataError, match=r"above the limit of 0\.05.*--max-side 2000.*--max-megapixels"):
        to_picture(path)
    picture = to_picture(path, lambda high, wide: (high // 6, wide // 6))
    assert picture.size == (height, width)
    pixels = picture.pixels
    assert pixels.shape[-2:] == (height // 3, width // 3) or (
        kind == "JPEG" and pixels.shape[-2:] == (height // 2, width // 2)
    )
    by = height // pixels.shape[-2]
    averaged = whole.unfold(2, by, by).unfold(3, by, by).mean((-1, -2))
    assert (pixels - averaged).abs().mean() < 0.01
    with pytest.raises(DataError, match=r"above the limit of 0\.05"):
        to_picture(
            path, lambda high, wide: (high // 2, wide // 2)
        )  # hardly smaller: that takes the whole file
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "0.03")
    with pytest.raises(
        DataError, match=r"above the limit of 0\.12.*That is the limit for files that are read reduced"
    ):
        to_picture(path, lambda high, wide: (8, 8))


def test_a_large_jpeg_is_never_decoded_as_a_whole(tmp_path, photo, monkeypatch):
    path = tmp_path / "large.jpg"
    photo.resize((1600, 800)).save(path)
    sizes = []
    load = Image.Image.load

    def watch(self):
        sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(Image.Image, "load", watch)
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "1")
    picture = to_picture(path, lambda high, wide: (high // 16, wide // 16))
    assert picture.size == (800, 1600)
    assert picture.pixels.shape == (1, 3, 100, 200)
    assert max(sizes) == (200, 100)
