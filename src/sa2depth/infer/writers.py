"""Predictions as files: a picture for people, millimetres for programs, floats for numerics.

``NAME_depth.png`` holds colours for a fixed metric range, ``NAME_depth_mm.png`` 16-bit millimetres (the PNG's text
fields give the scale), ``NAME_depth.npy`` float32 metres. Each file appears whole or not at all.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sa2depth.atomic import atomic_path
from sa2depth.errors import ConfigError
from sa2depth.image_files import opened
from sa2depth.infer.prediction import Prediction
from sa2depth.version import __version__

MILLIMETRES_MAX = 65535
"""The largest 16-bit value: 65.535 m."""

logger = logging.getLogger(__name__)


def write_color(
    prediction: Prediction,
    path: Path,
    depth_range: tuple[float, float] | None = None,
    colormap: str = "turbo",
) -> None:
    """Write depth as a colour PNG.

    Args:
        prediction: Depth ``(H, W)`` in metres.
        path: Path of the PNG.
        depth_range: Metres at the two ends of the colours; the model's own range by default, so that pictures
            of one model can be compared.
        colormap: A key of ``sa2depth.report.colours.COLORMAPS``.

    Raises:
        ConfigError: The range is empty, or the colour map is unknown.
    """
    from sa2depth.report.colours import colorize

    near, far = depth_range or (prediction.min_depth, prediction.max_depth)
    if not near < far:
        raise ConfigError(f"the colour range must go from near to far, not from {near:g} to {far:g} m")
    pixels = np.empty((*prediction.depth.shape, 3), np.uint8)
    for rows in bands(prediction.depth.shape):
        pixels[rows] = colorize(prediction.depth[rows], near, far, colormap)
    notes = {"Depth-Unit": "metre", "Depth-Range": f"{near:g} {far:g}"}
    _write_png(Image.fromarray(np.ascontiguousarray(pixels)), path, notes)


def write_millimetres(prediction: Prediction, path: Path) -> None:
    """Write depth as a 16-bit grey PNG of whole millimetres.

    Depths are rounded to the nearest millimetre. Depths above 65.535 m are clipped, and NaN or infinite ones become 0
    ("no depth"); a warning counts both.

    Args:
        prediction: Depth ``(H, W)`` in metres.
        path: Path of the PNG.
    """
    # OFFICIAL: the released writer truncates, which is half a step too near on average, and leaves NaN
    # undefined.
    pixels = np.empty(prediction.depth.shape, np.uint16)
    too_far = broken = 0
    for rows in bands(prediction.depth.shape):
        finite = np.isfinite(prediction.depth[rows])
        depth_mm = np.rint(np.where(finite, prediction.depth[rows], 0.0).astype(np.float64) * 1000)
        too_far += int(np.count_nonzero(depth_mm > MILLIMETRES_MAX))
        broken += int(np.count_nonzero(~finite))
        pixels[rows] = np.clip(depth_mm, 0, MILLIMETRES_MAX).astype(np.uint16)
    if too_far:
        logger.warning("%s: %d pixels beyond 65.535 m are clipped; the .npy format keeps them", path, too_far)
    if broken:
        logger.warning("%s: %d pixels are NaN or infinite and are written as 0 (no depth)", path, broken)
    notes = {
        "Depth-Unit": "millimetre",
        "Depth-Scale": "0.001",
        "Depth-Note": "metres = value * 0.001; 0 = no depth",
    }
    _write_png(Image.fromarray(pixels), path, notes)


def write_npy(prediction: Prediction, path: Path) -> None:
    """Write depth as NumPy float32 metres, ``(H, W)``, exactly as predicted."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, prediction.depth.astype(np.float32, copy=False), allow_pickle=False)


Writer = Callable[[Prediction, Path], None]

FORMATS: dict[str, tuple[str, Writer]] = {
    "color": ("_depth.png", write_color),
    "mm": ("_depth_mm.png", write_millimetres),
    "npy": ("_depth.npy", write_npy),
}
"""Format name -> (end of the file name, writer)."""


def write(
    prediction: Prediction,
    folder: str | os.PathLike[str],
    name: str | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    depth_range: tuple[float, float] | None = None,
    colormap: str = "turbo",
) -> list[Path]:
    """Write one prediction in several formats.

    Args:
        prediction: The prediction to write.
        folder: Folder of the files; it is made if it does not exist.
        name: Start of the file names; the prediction's id by default.
        formats: Any of ``color``, ``mm``, ``npy``.
        depth_range: For ``color``; see `write_color`.
        colormap: For ``color``; see `write_color`.

    Returns:
        The files written.

    Raises:
        ConfigError: A format is unknown.
    """
    check_formats(formats)
    stem = name or prediction.id
    written = []
    for each in formats:
        ending, writer = FORMATS[each]
        path = Path(folder).expanduser() / f"{stem}{ending}"
        if each == "color":
            write_color(prediction, path, depth_range, colormap)
        else:
            writer(prediction, path)
        written.append(path)
    return written


def check_formats(formats: Sequence[str]) -> None:
    """Refuse unknown formats before anything is predicted.

    Args:
        formats: Names to check.

    Raises:
        ConfigError: A format is unknown, or there is none.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"formats must be any of {', '.join(FORMATS)}, not {', '.join(unknown) or 'none'}")


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Choose one name per input, so that no two inputs write the same file.

    A name is the stem if that is unique; otherwise the folder's name goes in front, then a number is added. Case is
    ignored, because some file systems do so.

    Args:
        paths: Input files.

    Returns:
        Names in the same order.
    """
    stems = [path.stem.casefold() for path in paths]
    count = Counter(stems)
    taken: set[str] = set()
    names = []
    for path, stem in zip(paths, stems, strict=True):
        alone = count[stem] == 1 or not path.parent.name
        base = path.stem if alone else f"{path.parent.name}_{path.stem}"
        name, number = base, 2
        while name.casefold() in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def bands(shape: tuple[int, ...], pixels: int = 1 << 22) -> Iterator[slice]:
    """Split a map into bands of rows, because float64 copies of the whole map may not fit into memory.

    Args:
        shape: ``(H, W)``.
        pixels: most pixels of a band, which has at least one row.
    """
    step = max(1, pixels // max(1, shape[1]))
    return (slice(top, top + step) for top in range(0, shape[0], step))


def _write_png(image: Image.Image, path: Path, notes: dict[str, str]) -> None:
    fields = PngInfo()
    for key, value in {"Software": f"sa2depth {__version__}", **notes}.items():
        fields.add_text(key, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=fields)


def read_millimetres(path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Read a file that `write_millimetres` wrote: ``(H, W)`` float32 metres, 0 = no depth.

    Raises:
        DataError: the file is missing or broken.
    """
    with opened(Path(path), "depth map", math.inf) as image:
        return np.array(image).astype(np.float32) / np.float32(1000)
