"""Compare the ways to run a trained network: the depth of each against that of float64.

Keys are grouped by the rank of their scores, so a rounding error can change a pixel by much more than itself. The
largest difference therefore says little; shares of pixels and the root mean square say what to expect.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sa2depth.bench.routes import REFERENCE, Depths, depths, routes
from sa2depth.errors import ConfigError, ShapeError
from sa2depth.infer.images import to_tensor
from sa2depth.metrics.any_size import resize_image
from sa2depth.scenes import SyntheticScenes
from sa2depth.weights import load_model

_SEED = 7  # of the generated scenes; experiment=demo trains on seed 0


@dataclass(frozen=True)
class Pictures:
    """The images that the network is run on.

    Attributes:
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        truth: ``(N, H, W)`` metres, 0 where not measured; None if not known.
    """

    images: Tensor
    truth: Depths | None = None


@dataclass(frozen=True)
class Row:
    """One route compared with the reference, over all pixels of all images.

    Attributes:
        route: name of the route.
        rms_percent: root mean square of the relative difference, in percent.
        over_1_percent: share of pixels that differ by more than 1 % of their depth.
        over_5_percent: share of pixels that differ by more than 5 % of their depth.
        largest_m: largest difference, metres.
        abs_rel: mean relative error against the truth; None if that is not known.
        abs_rel_change: ``abs_rel`` minus that of the reference.
        note: the reason if there are no figures.
    """

    route: str
    rms_percent: float | None = None
    over_1_percent: float | None = None
    over_5_percent: float | None = None
    largest_m: float | None = None
    abs_rel: float | None = None
    abs_rel_change: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dict for JSON."""
        return asdict(self)


def generated(count: int, size: tuple[int, int], kind: str, max_depth: float) -> Pictures:
    """Ray-cast scenes with their depth.

    Args:
        count: number of scenes.
        size: height and width, px.
        kind: ``rooms``, ``streets`` or ``mixed``.
        max_depth: range of the depth, metres.
    """
    scenes = SyntheticScenes(count, _SEED, *size, kind=kind, max_depth=max_depth)  # type: ignore[arg-type]
    samples = [scenes[index] for index in range(count)]
    images = torch.stack([to_tensor(sample.image)[0] for sample in samples])
    return Pictures(images, np.stack([np.asarray(sample.depth, np.float64) for sample in samples]))


def photographs(files: list[Path], size: tuple[int, int]) -> Pictures:
    """Pictures from files, all resized to one size.

    Raises:
        DataError: a file is missing or not a picture.
    """
    return Pictures(torch.cat([resize_image(to_tensor(file), size).clamp(0, 1) for file in files]))


def check_size(checkpoint: str, size: tuple[int, int]) -> float:
    """Check that a network can take images of a size, and return its largest depth in metres.

    Raises:
        ShapeError: a side is not a multiple of the network's.
        CheckpointError: the file holds no network.
    """
    model: Any = load_model(checkpoint)
    multiple = int(getattr(model, "stride_multiple", 32))
    if any(side % multiple or side < multiple for side in size):
        raise ShapeError(
            f"--size {size[0]}x{size[1]}: {checkpoint} needs multiples of {multiple}; give the size of its training"
        )
    return float(model.max_depth)


def run(checkpoint: str, pictures: Pictures, device: torch.device, only: str = "") -> Iterator[Row]:
    """Compare the routes; each row is yielded as soon as it is done, the reference first.

    Args:
        checkpoint: argument of `sa2depth.weights.load_model`.
        pictures: images to run the network on.
        device: device of the network.
        only: part of the names of the routes to run; all by default.

    Raises:
        ConfigError: no route has such a name.
    """
    wanted = [route for route in routes(device) if only in route.name]
    if not wanted:
        names = "; ".join(route.name for route in routes(device))
        raise ConfigError(
            f"--only {only}: no way to run the network has this in its name. The names are: {names}"
        )
    reference = depths(REFERENCE, checkpoint, pictures.images, device)
    error = abs_rel(reference, pictures.truth)
    yield Row(REFERENCE.name, 0.0, 0.0, 0.0, 0.0, error, None if error is None else 0.0)
    for route in wanted:
        if route.why_not:
            yield Row(route.name, note=f"not run: {route.why_not}")
            continue
        try:
            found = depths(route, checkpoint, pictures.images, device)
        except (ConfigError, RuntimeError) as failure:  # the other routes are still compared
            yield Row(route.name, note=f"failed: {str(failure).strip().splitlines()[-1]}")
            continue
        yield compare(route.name, found, reference, pictures.truth)


def compare(name: str, found: Depths, reference: Depths, truth: Depths | None = None) -> Row:
    """Figures of one route.

    Args:
        name: name of the route.
        found: ``(N, H, W)`` metres.
        reference: ``(N, H, W)`` metres, computed in float64.
        truth: ``(N, H, W)`` metres, 0 where not measured.
    """
    away = np.abs(found - reference)
    share = away / reference
    error, before = abs_rel(found, truth), abs_rel(reference, truth)
    change = None if error is None or before is None else error - before
    return Row(
        name,
        100 * float(np.sqrt(np.mean(share**2))),
        float(np.mean(share > 0.01)),
        float(np.mean(share > 0.05)),
        float(away.max()),
        error,
        change,
    )


def abs_rel(found: Depths, truth: Depths | None) -> float | None:
    """Mean relative error over the measured pixels; None without truth."""
    if truth is None or not (valid := truth > 0).any():
        return None
    return float(np.mean(np.abs(found - truth)[valid] / truth[valid]))
