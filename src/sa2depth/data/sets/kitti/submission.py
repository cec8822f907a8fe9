"""Write and check results for KITTI's depth prediction server: one zip of 500 depth maps.

Source: the readme of the benchmark's development kit (2017): ``0000000000.png`` to ``0000000499.png`` in the root of a
zip, each a single-channel 16-bit PNG of ``depth * 256`` at the size of its image, 352x1216; 0 means "no estimate".
"""

import io
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sa2depth.atomic import atomic_path
from sa2depth.data.io.depth_files import DepthMap
from sa2depth.data.sets.kitti.official import SELECTION_SIZE, TEST_IMAGES
from sa2depth.errors import ConfigError, DataError

COUNT = TEST_IMAGES
SIZE = SELECTION_SIZE

UNITS_PER_METRE = 256
MAX_METRES = 65535 / UNITS_PER_METRE

_LARGEST_MEMBER = 8_000_000
_PLAUSIBLE_MEDIAN = (1.0, 100.0)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


def names() -> list[str]:
    """The file names that the server expects, in order."""
    return [f"{number:010d}.png" for number in range(COUNT)]


def encode(depth: DepthMap, what: str = "depth map") -> bytes:
    """Encode a depth map as the PNG that the server accepts.

    Args:
        depth: ``(352, 1216)`` metres.
        what: name of the map, for errors.

    Returns:
        A single-channel 16-bit PNG of the nearest integer to ``depth * 256``.

    Raises:
        DataError: the size is wrong, or depths are not finite, not positive or above 255.99 m.
    """
    if depth.shape != SIZE:
        raise DataError(
            f"{what}: expected depth of {_text(SIZE)} pixels, the size of every test image, found "
            f"{_text(depth.shape)}: predictions return to the image's own size before they are written"
        )
    # OFFICIAL: the released script truncates, which is half a step too near on average, and makes any value of NaN.
    with np.errstate(invalid="ignore"):
        units = np.rint(np.asarray(depth, np.float64) * UNITS_PER_METRE)
        bad = ~((units >= 1) & (units <= 65535))
    if bad.any():
        example = float(depth[bad][0])
        raise DataError(
            f"{what}: {int(bad.sum()):,} of {depth.size:,} depths cannot be written, first {example:g} m: expected "
            f"finite metres from {1 / UNITS_PER_METRE:g} to {MAX_METRES:.2f}. Is the model broken, or its unit wrong?"
        )
    # A quarter smaller than with OpenCV's default, for 10 ms more: uploads are about 100 MB.
    done, data = cv2.imencode(".png", units.astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise DataError(f"{what}: OpenCV could not encode it as PNG")
    return data.tobytes()


def write_submission(output: Path | str, predictions: Iterable[tuple[int, DepthMap]]) -> Path:
    """Write the zip; it appears complete or not at all.

    Args:
        output: the ``.zip`` file; an existing one is replaced.
        predictions: number of the test image and its depth ``(352, 1216)`` in metres, each number once, any order.

    Returns:
        The path written.

    Raises:
        ConfigError: the name of ``output`` does not end in ``.zip``.
        DataError: a number is missing, repeated or beyond 499, or `encode` refuses a map.
    """
    target = Path(output).expanduser()
    if target.suffix != ".zip":
        raise ConfigError(f"{target}: a submission is a zip file, so name it {target.with_suffix('.zip')}")
    written: set[int] = set()
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for number, depth in predictions:
            if number in written or not 0 <= number < COUNT:
                reason = "was given twice" if number in written else f"is outside 0 to {COUNT - 1}"
                raise DataError(f"{target}: test image {number} {reason}")
            written.add(number)
            name = f"{number:010d}.png"
            # With a fixed date, the same predictions make the same bytes. PNGs are compressed already.
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, encode(depth, name))
        if missing := [name for number, name in enumerate(names()) if number not in written]:
            raise DataError(f"{target}: {_some(missing)} missing; a submission has all {COUNT}")
    return target


@dataclass(frozen=True)
class SubmissionReport:
    """The faults of a submission.

    Attributes:
        path: the zip.
        images: number of images without error.
        errors: reasons for the server to refuse the file, or to score something else than intended.
        warnings: oddities that are allowed but probably not intended.
    """

    path: Path
    images: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """True if there is no error."""
        return not self.errors


def validate_submission(
    path: Path | str, progress: Callable[[int], None] = lambda done: None
) -> SubmissionReport:
    """Check a zip before it is sent: names, folders, sizes, bit depth, channels, readability, empty maps.

    Args:
        path: the zip.
        progress: called with the number of images checked so far.

    Raises:
        DataError: the file is absent or not a zip.
    """
    source = Path(path).expanduser()
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            errors = _names_wrong(entries)
            wanted = set(names())
            present = {entry.filename: entry for entry in entries if entry.filename in wanted}
            maps: dict[str, _Map] = {}
            for done, (name, entry) in enumerate(sorted(present.items())):
                try:
                    maps[name] = _open(archive, entry)
                except DataError as error:
                    errors.append(f"{name}: {error}")
                progress(done + 1)
    except OSError as error:
        raise DataError(f"{source}: cannot read this file ({error.strerror or error})") from error
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{source}: expected a zip archive, found something else or a damaged one ({error})"
        ) from error
    errors += [
        f"{name}: all pixels are 0, which means 'no estimate'"
        for name, found in maps.items()
        if not found.measured
    ]
    good = {name: found for name, found in maps.items() if found.measured}
    return SubmissionReport(source, len(good), tuple(errors), tuple(_oddities(good)))


@dataclass(frozen=True)
class _Map:
    """Facts about a depth map: number of pixels above 0, True if all are equal, median (of a sample) in metres."""

    measured: int
    constant: bool
    median: float


def _names_wrong(entries: Sequence[zipfile.ZipInfo]) -> list[str]:
    files = [entry.filename for entry in entries if not entry.is_dir()]
    wanted = names()
    missing = [name for name in wanted if name not in set(files)]
    folders = Counter(str(PurePosixPath(name).parent) for name in files if "/" in name)
    folders.update({entry.filename.rstrip("/"): 0 for entry in entries if entry.is_dir()})
    extra = [name for name in files if "/" not in name and name not in set(wanted)]
    twice = [name for name, count in Counter(files).items() if count > 1]
    errors = [
        f"folder '{name}/' has {count} files: the images belong in the root of the zip; pack the files, not the folder"
        for name, count in folders.items()
    ]
    if missing:
        errors.append(f"{_some(missing)} missing from the root of the zip, which must hold all {COUNT}")
    errors += [f"'{name}': expected only {wanted[0]} to {wanted[-1]}" for name in extra]
    return errors + [f"'{name}' occurs more than once" for name in twice]


def _open(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Map:
    if entry.flag_bits & 1:
        raise DataError("is encrypted")
    if entry.file_size > _LARGEST_MEMBER:
        raise DataError(f"holds {entry.file_size:,} bytes, more than any depth map of {_text(SIZE)} pixels")
    try:
        data = archive.read(entry)
    except Exception as error:  # BadZipFile, zlib.error, LZMAError ...: a damaged archive may raise anything
        raise DataError(f"cannot be unpacked ({error}): write the zip again") from error
    pixels = _decode(data)
    sampled = pixels[::4, ::4]
    sampled = sampled[sampled > 0]
    median = float(np.median(sampled)) / UNITS_PER_METRE if sampled.size else 0.0
    return _Map(int(np.count_nonzero(pixels)), bool((pixels == pixels[0, 0]).all()), median)


def _decode(data: bytes) -> npt.NDArray[np.uint16]:
    """Check the header of a PNG against the server's rules and read its pixels."""
    if not data.startswith(_SIGNATURE) or len(data) < 26:
        raise DataError("is not a PNG, or ends within its header")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    if (height, width) != SIZE:
        raise DataError(f"expected {_text(SIZE)} pixels (height x width), found {height}x{width}")
    if (bits, colour) != (16, 0):
        kind = _COLOUR_TYPES.get(colour, f"colour type {colour}")
        raise DataError(f"expected one channel of 16 bits, found {kind} of {bits} bits")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # checks the checksums; reading pixels needs a new open
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image).astype(np.uint16)
    except Exception as error:  # Pillow may raise anything on a damaged file
        raise DataError(f"is a PNG that is damaged or ends early ({error})") from error


def _oddities(maps: dict[str, _Map]) -> list[str]:
    holes = [name for name, found in maps.items() if found.measured < SIZE[0] * SIZE[1]]
    constant = [name for name, found in maps.items() if found.constant]
    warnings = []
    if holes:
        warnings.append(f"{_some(holes)} with pixels of 0, 'no estimate': the benchmark scores every pixel")
    if constant:
        warnings.append(f"{_some(constant)} with one depth in all pixels")
    median = float(np.median([found.median for found in maps.values()])) if maps else None
    if median is not None and not _PLAUSIBLE_MEDIAN[0] <= median <= _PLAUSIBLE_MEDIAN[1]:
        warnings.append(
            f"the median depth is {median:g} m, odd for a street: are the values metres times {UNITS_PER_METRE}?"
        )
    return warnings


def _some(found: Sequence[str]) -> str:
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return f"{len(found)} image{'s' if len(found) > 1 else ''} ({shown})"


def _text(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)
