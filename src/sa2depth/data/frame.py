"""A frame: where one image and its depth lie, and which camera took it."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sa2depth.data.io.depth_files import MILLIMETRE_PNG, DepthDecoder
from sa2depth.errors import DataError

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Frame:
    """One image on disk.

    Attributes:
        image: the photograph.
        depth: its depth file; None where the data set has none for this image.
        intrinsics: ``(fx, fy, cx, cy)`` in pixels; None: in ``intrinsics_file``, or unknown without one.
        id: name of the frame, unique within a data set, e.g. ``train/office_0003/00002``.
        place: where it was taken. Frames of one place look alike: they stay together when a list is divided.
        decode: reads ``depth`` as metres.
        mask: 8-bit image, 0 where depth must not be used; None: use all of it.
        intrinsics_file: text file with the nine numbers of the camera matrix.
        smaller_depth: whether ``depth`` may have fewer pixels than ``image``, see `sa2depth.depth_size`.
    """

    image: Path
    depth: Path | None
    intrinsics: tuple[float, float, float, float] | None
    id: str
    place: str = ""
    decode: DepthDecoder = MILLIMETRE_PNG
    mask: Path | None = None
    intrinsics_file: Path | None = None
    smaller_depth: bool = False

    @property
    def files(self) -> list[Path]:
        """All files that reading this frame opens."""
        given = (self.image, self.depth, self.mask, self.intrinsics_file)
        return [path for path in given if path is not None]


def require_files(frames: Sequence[Frame], *, dataset: str, root: Path, advice: str) -> None:
    """Fail unless every file of ``frames`` is there.

    Args:
        frames: what is to be read later.
        dataset: what the error calls the set.
        root: where it was looked for.
        advice: what the user can do about missing files.

    Raises:
        DataError: with the number of missing files, the first names, the folder searched and the advice.
    """
    # OFFICIAL: the released loader skips an image whose ground truth is missing and evaluates the rest.
    # one calibration file belongs to many frames
    wanted = list(dict.fromkeys(path for frame in frames for path in frame.files))
    missing = missing_files(wanted)
    if missing:
        names = "".join(f"\n  {_below(path, root)}" for path in missing[:_NAMES_SHOWN])
        more = f"\n  ... and {len(missing) - _NAMES_SHOWN:,} more" if len(missing) > _NAMES_SHOWN else ""
        state = "" if root.is_dir() else " (this folder does not exist)"
        raise DataError(
            f"{dataset}: {len(missing):,} of {len(wanted):,} files are missing below {root}{state}:"
            f"{names}{more}\n{_spelling(missing)}{advice}"
        )


def _spelling(missing: Sequence[Path]) -> str:
    """A line on missing paths that would be found if they were spelt otherwise, as they are on Windows; or nothing."""
    if os.sep == "/" and any("\\" in str(path) for path in missing):
        return "Paths with backslashes are understood by Windows only: write / instead.\n"
    for path in missing[:_NAMES_SHOWN]:
        try:
            names = os.listdir(path.parent)  # noqa: PTH208  # names alone
        except OSError:
            continue
        for name in names:
            if name.casefold() == path.name.casefold():
                return f"{path.name} is there as {name}: upper and lower case count.\n"
            if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", path.name):
                return f"{path.name} is there, but its accents are other characters: copy the name from the folder.\n"
    return ""


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of ``paths`` that are not there.

    Folders are listed once each: quicker than asking for 72,000 files one by one, on network disks above all.
    """
    listings: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in listings:
            listings[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in listings[folder]:
            missing.append(path)
    return missing


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
