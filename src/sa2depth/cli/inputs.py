"""Read what users type: images as files, folders and patterns; sizes as 480x640."""

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sa2depth.errors import ConfigError, DataError

SUFFIXES = frozenset(
    {
        *(
            ".avif",
            ".bmp",
            ".gif",
            ".jpe",
            ".jpeg",
            ".jpg",
            ".jfif",
            ".mpo",
            ".pgm",
            ".png",
            ".ppm",
            ".tif",
            ".tiff",
        ),
        *(
            ".webp",
            ".heic",
            ".heif",
        ),  # the last two cannot be read: they give an error instead of being skipped
    }
)
"""Suffixes of images inside a folder; a file that is named directly is read whatever its suffix."""

MAX_SIDE = 99_999
"""Longest side in pixels; no network runs on more."""

_NAMES_SHOWN = 5

Say = Callable[[str], None]


def find_images(arguments: Sequence[str], say: Say = lambda text: None) -> list[Path]:
    """Files that the arguments name, each once, in the order given; folders and patterns are sorted by name.

    Args:
        arguments: Paths of files, of folders (their images are taken, not those of sub-folders), or patterns
            with ``*``, ``?``, ``[...]``, ``**`` that the shell has not resolved.
        say: Called with a line about skipped files for each folder or pattern.

    Returns:
        Paths. A missing file and a broken link are kept; reading them fails later, as for damaged files.

    Raises:
        DataError: A folder or a pattern holds no image, or a folder cannot be read.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            found += _images_in(path, say)
        elif not path.exists() and glob.has_magic(argument):
            matches = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # may be absolute
            if not (inside := _only_images(argument, matches, say)):
                raise DataError(f"{argument}: no image matches this pattern")
            found += inside
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    for path in found:
        # do not follow links: a link has its own name, and so has its result
        once.setdefault(path.parent.resolve() / path.name, path)
    return list(once.values())


def _images_in(folder: Path, say: Say) -> list[Path]:
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read ({error.strerror or error})") from error
    images = _only_images(str(folder), inside, say)
    if not images:
        below = sum(item.is_dir() for item in inside)
        hint = f"; give '{folder}/**/*' to search its {below} folders" if below else ""
        raise DataError(
            f"{folder}: no images in this folder{hint}. Known suffixes are {', '.join(sorted(SUFFIXES))}"
        )
    return images


def _only_images(where: str, paths: Iterable[Path], say: Say) -> list[Path]:
    """Sorted images among the paths found; other files are named, except folders and hidden files."""
    images, others, results = [], [], []
    for path in sorted(paths):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in SUFFIXES:
            others.append(path.name)
        elif is_result(path):
            results.append(path.name)
        else:
            images.append(path)
    for names, why in ((others, "files without an image suffix"), (results, "results of sa2depth predict")):
        if names:
            more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
            say(f"{where}: left out {why}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    return images


def is_result(path: Path) -> bool:
    """True if ``sa2depth predict`` wrote this picture, perhaps into the folder of the photographs."""
    if not path.name.endswith(("_depth.png", "_depth_mm.png")):
        return False
    try:
        with path.open("rb") as file:
            return b"Software\x00sa2depth " in file.read(256)
    except OSError:
        return False


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"480x640"`` as (height, width) in pixels.

    Args:
        text: The text typed, or None.

    Returns:
        Height and width; None without text.

    Raises:
        ConfigError: The text has another form, or a side is larger than `MAX_SIDE`.
    """
    if text is None:
        return None
    match = re.fullmatch(r"0*([0-9]+)[x×]0*([0-9]+)", text.strip().lower())
    if match is None or "0" in (match[1], match[2]):
        raise ConfigError(f"--size must be HEIGHTxWIDTH in pixels, for example 480x640, not '{text}'")
    if max(len(match[1]), len(match[2])) > len(str(MAX_SIDE)):  # before int(), which refuses very long ones
        raise ConfigError(f"--size {text}: too large; each side may have up to {MAX_SIDE} pixels")
    return int(match[1]), int(match[2])
