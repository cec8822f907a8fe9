"""Opening image files: the one place that uses Pillow, which may fail in any way on files of unknown origin.

Whatever it raises becomes a `DataError` that names the file and says why. A photograph with a damaged EXIF block is
still used, because only the orientation is read from the block.
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
"""Environment variable with the largest size, in megapixels, of an image that is decoded as a whole."""
MAX_MEGAPIXELS = 179.0
"""The limit if that variable is not set: Pillow's own (three channels of it take half a gigabyte)."""
REDUCED = 4
"""An image that is read reduced may exceed the limit by this factor: Pillow needs four bytes a pixel for it."""

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
    """The largest size, in megapixels, of an image that is decoded as a whole.

    Args:
        given: limit from the caller; if None, ``SA2DEPTH_MAX_MEGAPIXELS`` or else `MAX_MEGAPIXELS` counts.

    Raises:
        ConfigError: the limit is not a positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or MAX_MEGAPIXELS
    try:
        limit = float(text if given is None else given)
    except ValueError:
        limit = math.nan
    if not limit > 0:  # true for NaN, too
        name = LIMIT_VARIABLE if given is None else "max_megapixels"
        raise ConfigError(
            f"{name}={text if given is None else given}: expected a positive number of megapixels"
        )
    return limit


@contextmanager
def opened(path: Path, what: str, allowed: float | None = None) -> Iterator[Image.Image]:
    """Open an image file, with errors for people while it is opened, decoded and converted.

    Args:
        path: the file.
        what: noun for the errors: ``photograph``, ``mask``.
        allowed: most megapixels that it may have; None: `megapixel_limit`.

    Raises:
        DataError: the file is missing, broken, not an image, too large, or cannot be read; the message names it.
    """
    _require_file(path, what)
    try:
        with _open(path) as image:
            if path.suffix.lower() in _RAW_SUFFIXES or _DNG_VERSION in getattr(image, "tag_v2", {}):
                raise DataError(
                    f"{path}: expected a {what}, found raw camera data, from which only a thumbnail could be read. "
                    "Develop it to JPEG, PNG or TIFF first"
                )
            _refuse_too_large(path, image, allowed)
            yield image
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: there is not enough memory to decode this {what}: store it smaller, or end other programs"
        ) from error
    except OSError as error:
        # Pillow's own errors have no errno: they mean a broken file, not that the system refuses to read it
        if error.errno is not None:
            raise DataError(f"{path}: this {what} cannot be read ({error.strerror or error})") from error
        raise _no_image(path, what, error) from error
    except (
        Exception
    ) as error:  # each decoder has its own: struct.error, SyntaxError, ValueError, zlib.error ...
        raise _no_image(path, what, error) from error


def upright(image: Image.Image, name: str, note: Note | None = None) -> tuple[Image.Image, bool]:
    """Decode an image and turn it as its EXIF orientation says.

    Unlike `PIL.ImageOps.exif_transpose` it reads only this one value: damage elsewhere in the EXIF block does not
    matter, and nothing is written back into it.

    Args:
        image: the opened image.
        name: its file, for the note.
        note: called with one sentence if the EXIF block is damaged, so that the image is not turned, or if only the
            first of several frames is used; None: a warning in the log, once per file.

    Returns:
        The image, and whether height and width were exchanged.
    """
    stored = image.size
    if (
        getattr(image, "is_animated", False) and image.format != "MPO"
    ):  # MPO: a phone's photograph and its extras
        _tell(f"{name}: it has several frames or pages; only the first one is used", note)
    image.load()  # a TIFF turns itself while it is decoded
    method = _TURNS.get(_orientation(image, name, note))
    if method is None:
        return image, image.size != stored
    result = image.transpose(method)
    return result, method in _SIDEWAYS


def changes_sides(image: Image.Image, name: str) -> bool:
    """Whether `upright` would exchange height and width of an opened image, which is not decoded for this."""
    return _TURNS.get(_orientation(image, name, None)) in _SIDEWAYS


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode of up to 8 bits to RGB; transparency is dropped."""
    image.info.pop("transparency", None)  # of a palette: Pillow would warn about it for every file
    return image.convert("RGB")


def reduced(image: Image.Image, factor: int) -> Image.Image:
    """Decode an opened image at about 1/factor of its sides, with smoothing.

    A JPEG is decoded directly at 1/2, 1/4 or 1/8, which takes a fraction of the memory. The rest of the factor, and
    the whole factor for other formats, comes from averages over blocks of pixels.

    Args:
        image: the opened image, not decoded yet; it may be changed.
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
        exif["exif"] = image.info["exif"]  # a PNG may have it at the end of the file
    if image.mode in ("1", "P", "PA"):
        image = to_rgb(image)
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    smaller = image.reduce(rest)
    smaller.info |= exif
    return smaller


def too_large(path: Path, size: tuple[int, int], limit: float, advice: str) -> DataError:
    """Make the error for an image of ``(width, height)`` pixels above a limit in megapixels."""
    megapixels = size[0] * size[1] / 1e6
    setting = f"{LIMIT_VARIABLE}={math.ceil(megapixels)}"
    return DataError(
        f"{path}: {size[1]}x{size[0]} pixels (height x width) are {megapixels:.0f} megapixels, above the limit of "
        f"{limit:g}, which protects the memory. {advice} {setting}"
    )


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        # Pillow's limit is global and refuses before the size is known; our own limit is checked next.
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
        target = f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else ""  # noqa: PTH115
        raise DataError(f"{path}: {target or f'there is no such {what}'}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: this {what} cannot be read ({why})") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: expected a {what}, found a folder of this name")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: expected a {what}, found a pipe, a device or another special file")


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
        reason = "it does not begin like a known format"
    elif not isinstance(error, OSError | SyntaxError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return DataError(
        f"{path}: expected a readable {what} (JPEG, PNG ...), found a broken file or another format ({reason}). "
        "Download or export this file again"
    )


def _orientation(image: Image.Image, name: str, note: Note | None) -> int:
    """EXIF orientation of a decoded image, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        block = image.info.get("exif")
        if isinstance(block, bytes) and block:
            found = _orientation_in(block)
            # Pillow is asked only if necessary: it warns about every damaged tag, without the name of the file
            if found is not None or not (image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")):
                return 1 if found is None else found
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # a damaged block may fail in any way
        _tell(
            f"{name}: its EXIF block is damaged ({error or type(error).__name__}), so its orientation is unknown: it "
            "is used as stored and may lie on its side",
            note,
        )
        return 1


def _tell(text: str, note: Note | None) -> None:
    if note is not None:
        note(text)
    elif text not in _told:  # once, not in every epoch
        _told.add(text)
        _log.warning("%s", text)


def _orientation_in(block: bytes) -> int | None:
    """Orientation in a block of EXIF data (a small TIFF file); None if it has none.

    Raises:
        ValueError, struct.error: the block does not begin like EXIF data, or ends before its first directory does.
    """
    data = block.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("it does not begin like one")
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if entry + 12 > len(data):
            raise ValueError("it is too short")
        tag, kind, values = struct.unpack_from(f"{order}HHL", data, entry)
        if tag == _ORIENTATION:
            if values != 1 or kind not in (3, 4):
                raise ValueError("its orientation is not a number")
            return int(struct.unpack_from(order + ("H" if kind == 3 else "L"), data, entry + 8)[0])
    return None
