"""What people type as images and sizes: files, folders, patterns; 480x640."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from sa2depth.errors import ConfigError, DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""What counts as an image inside a folder; a file named outright is tried whatever its name."""

MAX_SIDE = 99_999
"""Pixels; no network runs on more."""


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Files that the arguments mean, each once, in the order given; folders and patterns sorted by name.

    Args:
        arguments: Paths of files, of folders (their images are taken, not those of sub-folders), or patterns
            with ``*``, ``?``, ``[...]``, ``**`` that the shell has not resolved.

    Returns:
        Paths. A file that does not exist is kept: its error is named where it is read, beside those of broken
        ones.

    Raises:
        DataError: A folder or a pattern holds no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            inside = [item for item in path.iterdir() if _is_image(item)]
            if not inside:
                raise DataError(f"{path}: no images in this folder (known: {', '.join(sorted(SUFFIXES))})")
            found += sorted(inside)
        elif not path.exists() and glob.has_magic(argument):
            matches = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # may be absolute
            inside = sorted(item for item in matches if _is_image(item))
            if not inside:
                raise DataError(f"{argument}: no image fits this pattern")
            found += inside
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"480x640"`` as (height, width) in pixels.

    Args:
        text: What was typed, or nothing.

    Returns:
        Height and width.

    Raises:
        ConfigError: Not of that form, or larger than `MAX_SIDE`.
    """
    if text is None:
        return None
    match = re.fullmatch(r"0*([0-9]+)[x×]0*([0-9]+)", text.strip().lower())
    if match is None or "0" in (match[1], match[2]):
        raise ConfigError(f"--size is HEIGHTxWIDTH in pixels, for example 480x640, not '{text}'")
    if max(len(match[1]), len(match[2])) > len(str(MAX_SIDE)):  # before int(), which refuses very long ones
        raise ConfigError(f"--size {text}: too large; each side may have up to {MAX_SIDE} pixels")
    return int(match[1]), int(match[2])
