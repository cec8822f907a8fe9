"""Other people's predictions: find the file of each image, and read it.

The file of an image is ``FOLDER/ID.png`` or ``.npy``, where slashes of the id are folders; or the id with ``_`` for
every slash; or the last part of the id, if no other image of the split shares it. The name may end as ``sa2depth
predict`` writes it (``_depth.npy``, ``_depth_mm.png``; the first counts if both exist). Every image needs exactly one
such file, and no file may belong to two images.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.data.io.depth_files import PngDepth
from sa2depth.errors import ConfigError, DataError
from sa2depth.metrics import Protocol, cut_frame
from sa2depth.metrics.any_size import by, resize_map

SUFFIXES = (".png", ".npy")
_OF_PREDICT = ("_depth.npy", "_depth_mm.png")  # metres, millimetres
Resize = bool | Literal["native", "frame"]
_NAMES_SHOWN = 5


def find_files(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Find the file of every image.

    Args:
        folder: folder of the predictions.
        ids: ids of the images of the split.

    Returns:
        Id to path, in the order of ``ids``.

    Raises:
        DataError: the folder does not exist, an image has no file or several, or two images share one; the message
            gives counts and the first names.
    """
    if not folder.is_dir():
        raise DataError(
            f"predictions={folder}: expected a folder of {' or '.join(SUFFIXES)} files, found none"
        )
    there = listing(folder)
    shared = {name for name, count in Counter(_last(name) for name in ids).items() if count > 1}
    found = {
        name: [file for file in _candidates(name, shared) if file in there]
        or [file for file in _candidates(name, shared, _OF_PREDICT) if file in there][:1]
        for name in ids
    }
    _refuse_missing(folder, found, there, shared)
    _refuse_doubtful(folder, found)
    return {name: folder / files[0] for name, files in found.items()}


def _refuse_missing(folder: Path, found: Mapping[str, list[str]], there: set[str], shared: set[str]) -> None:
    missing = [name for name, files in found.items() if not files]
    if not missing:
        return
    last = [name for name in missing if any(_last(name) + suffix in there for suffix in SUFFIXES)]
    hint = (
        f"\n{len(last):,} have a file with the last part of their id, which other images share"
        if last
        else ""
    )
    raise DataError(
        f"predictions={folder}: {len(missing):,} of {len(found):,} images have no prediction; expected"
        f"{_some(_expected(name, shared) for name in missing)}{hint}\n"
        f"found {len(there):,} {' and '.join(SUFFIXES)} files in the folder{_some(sorted(there))}"
    )


def _refuse_doubtful(folder: Path, found: Mapping[str, list[str]]) -> None:
    several = [f"{name}: {', '.join(files)}" for name, files in found.items() if len(files) > 1]
    if several:
        raise DataError(
            f"predictions={folder}: {len(several):,} images have more than one file, and none is preferred:"
            f"{_some(several)}\nkeep one file per image"
        )
    owners: dict[str, list[str]] = defaultdict(list)
    for name, files in found.items():
        owners[files[0]].append(name)
    doubly = [f"{file}: {', '.join(names)}" for file, names in owners.items() if len(names) > 1]
    if doubly:
        raise DataError(
            f"predictions={folder}: {len(doubly):,} files belong to more than one image:"
            f"{_some(doubly)}\nname the files by whole ids, with their slashes as folders"
        )


@dataclass(frozen=True)
class PredictionReader:
    """Reads predicted depth files.

    Attributes:
        units_per_metre: value of a 16-bit PNG that stands for one metre; None if there is no PNG to read.
        resize: treatment of a prediction that has neither the image's size nor the frame's. False refuses it;
            ``native`` resizes it (bilinear) to the image and then cuts the protocol's frame; ``frame`` resizes it to
            the frame; True is for protocols that cut no frame, where both are the same.
    """

    units_per_metre: float | None = None
    resize: Resize = False

    def check(self, files: Sequence[Path], protocol: Protocol) -> None:
        """Refuse ambiguous options before anything is read.

        Raises:
            ConfigError: PNG files have no scale, or the resize could mean two things.
        """
        pngs = [path for path in files if path.suffix == ".png"]
        if pngs and self.units_per_metre is None:
            raise ConfigError(
                f"{len(pngs):,} predictions are 16-bit PNG, the first is {pngs[0]}: their scale is not in the file, so "
                "give the value of one metre: prediction_scale=256 (KITTI), 1000 (millimetres) or 5000 (TUM)"
            )
        if self.units_per_metre is not None:
            _check_scale(self.units_per_metre)
        if self.units_per_metre is not None and not pngs:
            raise ConfigError(
                f"prediction_scale={self.units_per_metre:g} is for PNG files, but all {len(files):,} predictions are "
                ".npy, which hold metres: set prediction_scale=null"
            )
        if self.resize is True and protocol.frame is not None:
            raise ConfigError(
                f"prediction_resize=true could mean two things: protocol '{protocol.name}' cuts a frame of "
                f"{by(protocol.frame)} out of the image. Give prediction_resize=frame if the predictions show that "
                "frame, or prediction_resize=native if they show the whole image"
            )
        if not (isinstance(self.resize, bool) or self.resize in ("native", "frame")):
            raise ConfigError(f"prediction_resize={self.resize}: choose false, true, native or frame")

    def __call__(
        self, path: Path, native: tuple[int, int], protocol: Protocol, truth: tuple[int, int] | None = None
    ) -> "Prediction":
        """Read one prediction and bring it to the frame of the protocol, or to a truth with fewer pixels.

        Args:
            path: the file.
            native: ``(H, W)`` of the image.
            protocol: says which frame is cut out of it.
            truth: ``(h, w)`` of its truth; None: the size of the image.

        Raises:
            DataError: the file is broken, of another kind or of another size; the message names it.
        """
        values = self._read(path)
        found = (values.shape[0], values.shape[1])
        top, bottom, left, right = protocol.frame_box(*native)
        frame = (bottom - top, right - left)
        depth = torch.from_numpy(values)[None, None]
        if truth not in (None, native):
            protocol.check_smaller_truth(native, truth)
            return self._of_smaller(path, depth, native, truth)
        if found == native:
            return Prediction(cut_frame(depth, protocol), False)
        if found == frame:
            return Prediction(depth, False)
        if self.resize is False:
            either = by(native) if native == frame else f"{by(native)} or, as cut, {by(frame)}"
            raise DataError(
                f"{path}: expected a prediction of the size of its image, {either}, found {by(found)}. "
                "Resize it yourself, or give prediction_resize=native or =frame for bilinear resizing"
            )
        if self.resize == "frame":
            return Prediction(resize_map(depth, frame), True)
        return Prediction(cut_frame(resize_map(depth, native), protocol), True)

    def _of_smaller(
        self, path: Path, depth: torch.Tensor, native: tuple[int, int], truth: tuple[int, int]
    ) -> "Prediction":
        """A prediction at the size of a truth with fewer pixels than its image; no frame is cut."""
        found = (depth.shape[-2], depth.shape[-1])
        if found not in (native, truth):
            if self.resize is False:
                raise DataError(
                    f"{path}: expected a prediction of the size of its image, {by(native)}, or of its depth map, "
                    f"{by(truth)}, found {by(found)}. Resize it yourself, or give prediction_resize=native"
                )
            depth = resize_map(depth, native)
        return Prediction(resize_map(depth, truth), found != truth)

    def _read(self, path: Path) -> NDArray[np.float32]:
        if path.suffix == ".png":
            assert self.units_per_metre is not None, "check() was not called"
            depth = PngDepth(self.units_per_metre)(path, (0, 0))
            # A PNG has no NaN. 0 metres means no prediction, so it is counted and scored as NaN.
            return np.where(depth > 0, depth, np.float32(np.nan))
        try:
            array = np.load(path, allow_pickle=False)
        except OSError as error:
            raise DataError(f"{path}: this prediction cannot be read ({error.strerror or error})") from error
        except Exception as error:  # BadZipFile, MemoryError ...: a damaged file may raise anything
            raise DataError(
                f"{path}: expected a NumPy array of metres, found a damaged file or another format "
                f"({str(error) or type(error).__name__})"
            ) from error
        array = np.squeeze(array) if isinstance(array, np.ndarray) and array.ndim > 2 else array
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
            kind = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
            raise DataError(f"{path}: expected (H, W) floating-point metres, found {kind}")
        return np.ascontiguousarray(array, np.float32)


def _check_scale(scale: object) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ConfigError(
            f"prediction_scale={scale}: expected the positive number that stands for one metre in the PNG files"
        )


@dataclass(frozen=True)
class Prediction:
    """``depth (1, 1, h, w)`` metres at the size of the protocol's frame, and whether it was resized."""

    depth: torch.Tensor
    resized: bool


def listing(folder: Path) -> set[str]:
    """Relative names (with ``/``) of all files below a folder that could be predictions; links are followed."""
    return {
        (Path(root) / name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(SUFFIXES)
    }


def _stems(name: str, shared: set[str]) -> list[str]:
    stems = [name, name.replace("/", "_"), *([] if _last(name) in shared else [_last(name)])]
    return list(dict.fromkeys(stems))


def _candidates(name: str, shared: set[str], suffixes: Sequence[str] = SUFFIXES) -> Iterator[str]:
    for suffix in suffixes:
        yield from (stem + suffix for stem in _stems(name, shared))


def _expected(name: str, shared: set[str]) -> str:
    return " or ".join(stem + SUFFIXES[0] for stem in _stems(name, shared)) + f" (or {SUFFIXES[1]})"


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _some(lines: Iterable[str]) -> str:
    listed = list(lines)
    more = f"\n  ... and {len(listed) - _NAMES_SHOWN:,} more" if len(listed) > _NAMES_SHOWN else ""
    return "".join(f"\n  {line}" for line in listed[:_NAMES_SHOWN]) + more
