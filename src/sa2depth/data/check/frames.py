"""Check one frame: its files should be what its data set says.

`sa2depth.data.frame.read_frame` stops at the first fault; here all faults of a frame are reported.
"""

import hashlib
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from sa2depth.data.frame import Frame, read_camera, size_problem
from sa2depth.data.io.depth_files import (
    MILLIMETRE_PNG,
    DepthDecoder,
    DepthMap,
    Limited,
    RotatedPngDepth,
)
from sa2depth.data.io.depth_units import Spread, fitting_units
from sa2depth.data.io.images import read_mask, read_rgb
from sa2depth.data.sample import RawSample
from sa2depth.depth_size import same_view
from sa2depth.errors import DataError

Kind = Literal[
    "no_list",
    "missing",
    "unreadable",
    "wrong_format",
    "wrong_size",
    "wrong_unit",
    "implausible_depth",
    "empty_depth",
    "blank_image",
    "leaked_image",
    "leaked_place",
]
MEANING: dict[Kind, str] = {
    "no_list": "splits that cannot be listed",
    "missing": "files that do not exist",
    "unreadable": "files that cannot be read",
    "wrong_format": "files of another kind than expected",
    "wrong_size": "images or depth maps of another size than expected",
    "wrong_unit": "depth maps that seem to be in another unit",
    "implausible_depth": "depth maps outside the data set's range",
    "empty_depth": "depth maps without any measured pixel",
    "blank_image": "photographs of one colour",
    "leaked_image": "images in two splits",
    "leaked_place": "places in two splits",
}
"""Every kind of problem and its meaning, in the order of the report."""

_SHARE_OUTSIDE = 0.02
"""Sensors err in single pixels; a larger share of measured pixels outside the range is not noise."""
_SHARE_DROPPED = 0.5
"""The same for maps whose values outside given limits count as not measured."""
_BLANK_LEVELS = 4
"""A photograph is blank if its levels differ by no more than this (a JPEG of one colour may differ a little)."""
_SAMPLES = 20_000
"""Largest number of pixels from which percentiles are computed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        kind: a key of ``MEANING``.
        id: id of the frame, or name of the place if a place leaks.
        file: the file.
        message: the expected and the found state.
    """

    kind: Kind
    id: str
    file: str
    message: str


@dataclass(frozen=True, slots=True)
class Finding:
    """The facts about a frame after looking at it; small, because there may be 36,000 of them.

    Attributes:
        problems: its problems.
        digest: 16-byte hash of the photograph's file; None if it cannot be read.
        depth: range of its depths; None without measured depth.
        notes: harmless oddities, each as ``(text, file)``; the check counts equal texts.
    """

    problems: tuple[Problem, ...] = ()
    digest: bytes | None = None
    depth: Spread | None = None
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """The properties that the frames of a split have in common.

    Attributes:
        size: ``(H, W)`` of all images; None if they differ.
        depth_range: nearest and farthest plausible depth, metres.
    """

    size: tuple[int, int] | None
    depth_range: tuple[float, float]


def look_at_frame(frame: Frame, expected: Expected, missing: Set[Path] = frozenset()) -> Finding:
    """Open all files of a frame, except those known to be missing.

    A faulty file raises no error: the fault becomes a problem.
    """
    problems: list[Problem] = []

    def report(kind: Kind, file: Path, message: str) -> None:
        problems.append(Problem(kind, frame.id, str(file), message))

    def attempt(file: Path, read: Callable[[], Any]) -> Any:
        try:
            return None if file in missing else read()
        except DataError as error:
            report("wrong_format" if _opens(file) else "unreadable", file, str(error))
            return None

    notes: list[tuple[str, str]] = []

    def note(text: str) -> None:
        notes.append((text.removeprefix(f"{frame.image}: "), str(frame.image)))

    image = attempt(frame.image, lambda: read_rgb(frame.image, note))
    if image is not None:
        _judge_image(image, frame.image, expected, report)
    if frame.mask is not None:
        mask_file = frame.mask
        mask = attempt(mask_file, lambda: read_mask(mask_file))
        if mask is not None and image is not None and not _mask_fits(frame, mask.shape, image.shape[:2]):
            report(
                "wrong_size", mask_file, _sizes(f"the size of {frame.image.name}", image.shape, mask.shape)
            )
    if frame.intrinsics_file is not None:
        camera_file = frame.intrinsics_file
        attempt(camera_file, lambda: read_camera(camera_file))
    spread = None
    if frame.depth is not None:
        depth_file = frame.depth
        size = expected.size or (0, 0) if image is None else image.shape[:2]
        decode = frame.decode.decoder if isinstance(frame.decode, Limited) else frame.decode
        depth = attempt(depth_file, lambda: decode(depth_file, size))
        if depth is not None and depth.size:  # a laser scan has no pixels without its photograph
            if image is not None and (problem := size_problem(frame, depth.shape, image.shape[:2])):
                report("wrong_size", depth_file, problem)
            elif image is not None and depth.shape != image.shape[:2]:
                notes.append((_smaller(depth.shape, image.shape), str(depth_file)))
            spread = _judge_depth(depth, depth_file, frame.decode, size, expected, report)
    return Finding(tuple(problems), _digest(frame.image), spread, tuple(notes))


def look_at_sample(sample: RawSample, expected: Expected) -> Finding:
    """Check a sample that was made instead of read, like `look_at_frame`."""
    problems: list[Problem] = []

    def report(kind: Kind, _file: Path, message: str) -> None:
        problems.append(Problem(kind, sample.id, "", message))

    _judge_image(sample.image, Path(sample.id), expected, report)
    spread = None
    if sample.depth is not None:
        spread = _judge_depth(sample.depth, Path(sample.id), None, sample.image.shape[:2], expected, report)
    digest = hashlib.blake2b(np.ascontiguousarray(sample.image).data, digest_size=16).digest()
    return Finding(tuple(problems), digest, spread)


def spread_of(depth: DepthMap, depth_range: tuple[float, float]) -> Spread | None:
    """The range of the measured depths of ``(H, W)`` metres; None if nothing is measured."""
    measured = depth[depth > 0]
    if measured.size == 0:
        return None
    outside = np.count_nonzero((measured < depth_range[0]) | (measured > depth_range[1])) / measured.size
    low, median, high = np.percentile(measured[:: -(-measured.size // _SAMPLES)], (1, 50, 99))
    return Spread(float(low), float(median), float(high), float(outside))


def units_of(decode: DepthDecoder | None) -> float | None:
    """Units per metre that a decoder divides by; None if it has no such number."""
    inner = decode.decoder if isinstance(decode, Limited) else decode
    units = getattr(inner, "units_per_metre", None)
    return None if units is None else float(units)


_Report = Callable[[Kind, Path, str], None]


def _judge_image(image: npt.NDArray[Any], file: Path, expected: Expected, report: _Report) -> None:
    height, width = image.shape[:2]
    if expected.size is not None and (height, width) != expected.size:
        report("wrong_size", file, _sizes("the size of this data set", expected.size, image.shape))
    # A border of another colour, as in NYU v2, must not make an empty picture look full.
    inner = image[height // 10 : height - height // 10, width // 10 : width - width // 10]
    inner = inner[:: max(1, height // 64), :: max(1, width // 64)]
    if all(int(np.ptp(inner[..., channel])) <= _BLANK_LEVELS for channel in range(3)):
        report("blank_image", file, f"expected a photograph, found one colour all over ({height}x{width})")


def _judge_depth(
    depth: DepthMap,
    file: Path,
    decode: DepthDecoder | None,
    size: tuple[int, int],
    expected: Expected,
    report: _Report,
) -> Spread | None:
    """Judge ``depth`` as stored, before any `Limited`; return the range of the depths that are used."""
    bounds, allowed = expected.depth_range, _SHARE_OUTSIDE
    if isinstance(decode, Limited):
        # Limits are meant to drop something; if they drop most of it, something else is wrong.
        bounds, allowed = (decode.min_depth, decode.max_depth), _SHARE_DROPPED
    near, far = bounds
    spread = spread_of(depth, bounds)
    if spread is None:
        report(
            "empty_depth", file, f"expected measured depth, found none in {depth.shape[0]}x{depth.shape[1]}"
        )
        return None
    if spread.outside > allowed or not (near <= spread.median <= far):
        units = fitting_units(spread, bounds, units_of(decode))
        if isinstance(decode, RotatedPngDepth):
            plain = spread_of(MILLIMETRE_PNG(file, size), bounds)
            if plain is not None and plain.outside <= allowed:
                units = ["plain millimetres, not rotated by 3 bits"]
        found = f"expected {near:g} to {far:g} m, found {_describe(spread)}, {spread.outside:.0%} outside"
        hint = f". It would fit as {' or '.join(units[:2])}" if units else ""
        report("wrong_unit" if units else "implausible_depth", file, found + hint)
    if isinstance(decode, Limited):
        return spread_of(np.where((depth >= near) & (depth <= far), depth, np.float32(0)), bounds)
    return spread


def _describe(spread: Spread) -> str:
    return f"{spread.low:.3g} to {spread.high:.3g} m, median {spread.median:.3g} m"


def _smaller(depth: tuple[int, ...], image: tuple[int, ...]) -> str:
    return (
        f"depth of {depth[0]}x{depth[1]} beside a photograph of {image[0]}x{image[1]} (scored at its own size, "
        "upsampled for training)"
    )


def _mask_fits(frame: Frame, mask: tuple[int, ...], image: tuple[int, int]) -> bool:
    """True if a mask has the size of its image, or of an allowed smaller depth map (reading compares the two)."""
    return mask == image or (frame.smaller_depth and same_view((mask[0], mask[1]), image))


def _sizes(what: str, wanted: tuple[int, ...], found: tuple[int, ...]) -> str:
    return f"expected {what}, {wanted[0]}x{wanted[1]}, found {found[0]}x{found[1]}"


def _digest(file: Path) -> bytes | None:
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError:
        return None


def _opens(file: Path) -> bool:
    """True if a general reader accepts a file that ours refused: then it is of another kind, not broken."""
    try:
        if file.suffix.lower() in (".npy", ".npz"):
            np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            with Image.open(file) as image:
                image.load()
    except Exception:  # whatever the error: it does not open
        return False
    return True
