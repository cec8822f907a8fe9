"""A frame: where one image and its depth lie, and which camera took it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sa2depth.errors import DataError

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Frame:
    """One image on disk.

    Attributes:
        image: the photograph.
        depth: its depth PNG; None where the data set has none for this image.
        depth_scale: units of the depth PNG that make one metre.
        intrinsics: ``(fx, fy, cx, cy)`` in pixels.
        id: name of the frame, unique within a data set, e.g. ``train/office_0003/00002``.
        place: where it was taken. Frames of one place look alike: they stay together when a list is divided.
    """

    image: Path
    depth: Path | None
    depth_scale: float
    intrinsics: tuple[float, float, float, float]
    id: str
    place: str = ""


def require_files(frames: Sequence[Frame], *, dataset: str, root: Path, advice: str) -> None:
    """Fail unless every file of ``frames`` is there.

    Folders are listed once each: quicker than asking for 72,000 files one by one, on network disks above all.

    Args:
        frames: what is to be read later.
        dataset: what the error calls the set.
        root: where it was looked for.
        advice: what the user can do about missing files.

    Raises:
        DataError: with the number of missing files, the first names, the folder searched and the advice.
    """
    # OFFICIAL: the released loader skips an image whose ground truth is missing and evaluates the rest.
    wanted = [path for frame in frames for path in (frame.image, frame.depth) if path is not None]
    missing = _missing(wanted)
    if missing:
        names = "".join(f"\n  {path.relative_to(root)}" for path in missing[:_NAMES_SHOWN])
        more = f"\n  ... and {len(missing) - _NAMES_SHOWN:,} more" if len(missing) > _NAMES_SHOWN else ""
        state = "" if root.is_dir() else " (this folder does not exist)"
        raise DataError(
            f"{dataset}: {len(missing):,} of {len(wanted):,} files are missing below {root}{state}:"
            f"{names}{more}\n{advice}"
        )


def _missing(paths: Iterable[Path]) -> list[Path]:
    listings: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in listings:
            listings[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in listings[folder]:
            missing.append(path)
    return missing
