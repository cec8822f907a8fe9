"""Opening image files: the one place that asks Pillow, which may fail in any way on files from anywhere.

Whatever it raises becomes a `DataError` that names the file and says why. A damaged EXIF block costs no photograph:
only the orientation is read from it.
"""

import logging
import math
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from sa2depth.errors import ConfigError, DataError, UserError
from sa2depth.file_kinds import kind_of

LIMIT_VARIABLE = "SA2DEPTH_MAX_MEGAPIXELS"
"""Environment variable with the size, in megapixels, above which no image is decoded as a whole."""
MAX_MEGAPIXELS = 179.0
"""The limit where that variable is not set: Pillow's own (three channels of it take half a gigabyte)."""
REDUCED = 4
"""An image that is read reduced may have so many times the limit: Pillow needs four bytes a pixel for it."""

Note = Callable[[str], None]

_log = logging.getLogger(__name__)
_told: set[str] = set()
_unlimited = threading.Lock()

_RAW_SUFFIXES = frozenset({".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"})
_DNG_VERSION = 50706
_ORIENTATION = int(ExifTags.Base.Orientation)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))


def megapixel_limit(given: float | None = None) -> float:
    """The size, in megapixels, above which no image is decoded as a whole.

    Args:
        given: by the caller; None: what ``SA2DEPTH_MAX_MEGAPIXELS`` says, else `MAX_MEGAPIXELS`.

    Raises:
        ConfigError: it is no positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or MAX_MEGAPIXELS
    try:
        limit = float(text if given is None else given)
    except ValueError:
        limit = math.nan
    if not limit > 0:  # NaN as well
        name = LIMIT_VARIABLE if given is None else "max_megapixels"
        raise ConfigError(
            f"{name}={text if given is None else given}: expected a positive number of megapixels"
        )
    return limit


@contextmanager
def opened(path: Path, what: str, allowed: float | None = None) -> Iterator[Image.Image]:
    """An image file, with errors for people while it is opened, decoded and converted.

    Args:
        path: the file.
        what: it should be, for the errors: ``photograph``, ``mask``.
        allowed: megapixels that it may have; None: `megapixel_limit`.

    Raises:
        DataError: the file is absent, broken, no image, too large, or cannot be read; with its name.
    """
    _require_file(path, what)
    try:
        with _open(path) as image:
            if path.suffix.lower() in _RAW_SUFFIXES or _DNG_VERSION in getattr(image, "tag_v2", {}):
                raise DataError(
                    f"{path}: expected a {what}, found raw data of a camera, of which only a thumbnail could be read. "
                    "Develop it to JPEG, PNG or TIFF first"
                )
            _refuse_too_large(path, image, allowed)
            yield image
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: there is not enough memory to decode this {what}") from error
    except OSError as error:
        # Pillow's own have no number: a broken file, not the system's refusal to read it
        if error.errno is not None:
            raise DataError(f"{path}: this {what} cannot be read ({error.strerror or error})") from error
        raise _no_image(path, what, error) from error
    except (
        Exception
    ) as error:  # struct.error, SyntaxError, ValueError, KeyError, zlib.error ...: any decoder's own
        raise _no_image(path, what, error) from error


def upright(image: Image.Image, name: str, note: Note | None = None) -> tuple[Image.Image, bool]:
    """Decode an image and turn it as its EXIF orientation says.

    Unlike `PIL.ImageOps.exif_transpose` it reads this one value only: damage elsewhere in the EXIF block does not
    matter, and nothing is written back into it.

    Args:
        image: as opened.
        name: its file, for the note.
        note: told, in one sentence, what is odd about the file: its EXIF block is damaged, so that it is taken as
            stored, or it has more frames than the one that is taken; None: a warning of the log, once a file.

    Returns:
        The image, and whether its sides have changed places.
    """
    stored = image.size
    if (
        getattr(image, "is_animated", False) and image.format != "MPO"
    ):  # a phone's photograph with what belongs to it
        _tell(f"{name}: it has several frames or pages, and the first one is taken", note)
    image.load()  # a TIFF turns itself while it is decoded
    method = _TURNS.get(_orientation(image, name, note))
    if method is None:
        return image, image.size != stored
    result = image.transpose(method)
    return result, method in _SIDEWAYS


def changes_sides(image: Image.Image, name: str) -> bool:
    """Whether `upright` would exchange height and width of an opened image, which need not be decoded for it."""
    return _TURNS.get(_orientation(image, name, None)) in _SIDEWAYS


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode of up to 8 bits as RGB; transparency is dropped."""
    image.info.pop("transparency", None)  # of a palette: Pillow would warn of it for every file
    return image.convert("RGB")


def reduced(image: Image.Image, factor: int) -> Image.Image:
    """An opened image, not decoded yet, at about 1/factor of its sides, smoothed.

    A JPEG is decoded at 1/2, 1/4 or 1/8 already, which takes a fraction of the memory; what is left of the factor, and
    all other formats, are averaged over blocks of pixels.

    Args:
        image: as opened; it may be changed.
        factor: a whole number from 1.
    """
    width, height = image.size
    image.draft(None, (max(1, width // factor), max(1, height // factor)))
    rest = factor // max(1, round(width / image.size[0]))
    if rest < 2:
        return image
    exif: dict[str | tuple[int, int], Any] = {
        key: image.info[key] for key in ("exif", "xmp", "XML:com.adobe.xmp") if key in image.info
    }
    image.load()
    if "exif" in image.info:
        exif["exif"] = image.info["exif"]  # a PNG may have it at its end
    if image.mode in ("1", "P", "PA"):
        image = to_rgb(image)
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    smaller = image.reduce(rest)
    smaller.info |= exif
    return smaller


def too_large(path: Path, size: tuple[int, int], limit: float, advice: str) -> DataError:
    """The error about an image of ``(width, height)`` pixels above a limit in megapixels."""
    megapixels = size[0] * size[1] / 1e6
    setting = f"{LIMIT_VARIABLE}={math.ceil(megapixels)}"
    return DataError(
        f"{path}: {size[1]}x{size[0]} pixels (height x width) are {megapixels:.0f} megapixels, above the limit of "
        f"{limit:g}, which keeps out files that would fill the memory. {advice} {setting}"
    )


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        # Pillow's limit belongs to the whole process and refuses before the size is known: ours comes next.
        with _unlimited:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _refuse_too_large(path: Path, image: Image.Image, allowed: float | None) -> None:
    limit = megapixel_limit() if allowed is None else allowed
    if image.size[0] * image.size[1] > limit * 1e6:
        raise too_large(path, image.size, limit, "Store it smaller, or raise the limit with")


def _require_file(path: Path, what: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        # os.readlink: Path.is_symlink may not ask again
        target = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else ""  # noqa: PTH115
        raise DataError(f"{path}: {target or f'there is no such {what}'}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: this {what} cannot be read ({why})") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: expected a {what}, found a folder of this name")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: expected a {what}, found no regular file (a pipe, a device ...)")


def _no_image(path: Path, what: str, error: Exception) -> DataError:
    try:
        with path.open("rb") as file:
            kind = kind_of(file.read(4096))
    except OSError:
        kind = None
    if kind is not None:
        return DataError(f"{path}: expected a {what} (JPEG, PNG ...), found {kind}")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it begins like none that can be read"
    elif not isinstance(error, OSError | SyntaxError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return DataError(
        f"{path}: expected a readable {what} (JPEG, PNG ...), found a broken file or another format ({reason}). "
        "Fetch or export this file again"
    )


def _orientation(image: Image.Image, name: str, note: Note | None) -> int:
    """EXIF orientation of a decoded image, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        block = image.info.get("exif")
        if isinstance(block, bytes) and block:
            found = _orientation_in(block)
            # Pillow warns, without a name, of every damaged tag that it meets: it is not asked without need
            if found is not None or not (image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")):
                return 1 if found is None else found
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # a damaged block may fail in any way
        _tell(
            f"{name}: its EXIF block is damaged ({error or type(error).__name__}), so its orientation is unknown: it "
            "is taken as stored, perhaps on its side",
            note,
        )
        return 1


def _tell(text: str, note: Note | None) -> None:
    if note is not None:
        note(text)
    elif text not in _told:  # not at every epoch
        _told.add(text)
        _log.warning("%s", text)


def _orientation_in(block: bytes) -> int | None:
    """Orientation in a block of EXIF data (a small TIFF file); None where it has none.

    Raises:
        ValueError, struct.error: the block ends before its first directory does, or begins as none.
    """
    data = block.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("it does not begin as one")
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if entry + 12 > len(data):
            raise ValueError("it ends too early")
        tag, kind, values = struct.unpack_from(f"{order}HHL", data, entry)
        if tag == _ORIENTATION:
            if values != 1 or kind not in (3, 4):
                raise ValueError("its orientation is no number")
            return int(struct.unpack_from(order + ("H" if kind == 3 else "L"), data, entry + 8)[0])
    return None
