"""The predictor that every model must beat: the per-pixel median of the training depth maps."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.data.sample import DepthSource, Source, read_depth
from sa2depth.errors import ShapeError
from sa2depth.limits import told_limit
from sa2depth.metrics import MedianDepthMap, Protocol, aggregate, cut_frame, evaluate_image
from sa2depth.metrics.examples import spread
from sa2depth.run.median_cache import keep_map, place_of, read_map
from sa2depth.run.parallel import ahead, workers
from sa2depth.stages import Progress, stage
from sa2depth.threads import few_threads

MAPS = 2000
"""Largest number of training maps, evenly spread: all 36,253 of NYU v2 would fill 44 GB of temporary disk."""

_T = TypeVar("_T")
_Row = dict[str, Any]


def median_baseline(train: Source, test: Source, protocol: Protocol) -> dict[str, Any]:
    """Scores of the best predictor that ignores the image, under the frame and the crop of a protocol.

    Photographs are not decoded if the sources can read depth alone (`sa2depth.data.sample.DepthSource`). The fitted
    map is kept for later runs (`sa2depth.run.median_cache`).

    Args:
        train: source of the training images.
        test: source of the test images.
        protocol: rules of the scores.

    Returns:
        The result of `sa2depth.metrics.aggregate`, and ``maps``, the number of training maps. It is
        ``{"not_run": reason}`` if the maps differ in size, so that pixels have no median, or do not fit on the disk.
    """
    return fit_and_score(train, test, protocol, kept=True)


def fit_and_score(train: Source, test: Source, protocol: Protocol, *, kept: bool = False) -> dict[str, Any]:
    """Do the work of `median_baseline`; only with ``kept`` is the fitted map read from disk or kept there."""
    indices = spread(len(train), MAPS)
    with stage("baseline", len(indices) + len(test)) as progress, few_threads(1):
        try:
            predictor = _fitted(train, indices, protocol, progress, kept)
        except ShapeError as error:
            return {"not_run": str(error)}
        except OSError as error:  # such as a full disk for temporary files, which must not cost the scores
            return {"not_run": told_limit(error) or f"{type(error).__name__}: {error}"}
        rows = []
        for row in _each(test, lambda index: _score(test, index, predictor, protocol), range(len(test))):
            progress.advance()
            if row is not None:
                rows.append(row)
    return {**aggregate(rows, protocol), "maps": len(indices)}


def _fitted(
    train: Source, indices: Sequence[int], protocol: Protocol, progress: Progress, kept: bool
) -> MedianDepthMap:
    limits = protocol.min_depth, protocol.max_depth
    place = place_of(train, indices, protocol) if kept else None
    known = None if place is None else read_map(place)
    if known is not None:
        progress.advance(len(indices))
        return MedianDepthMap.restored(known, *limits)

    def maps() -> Iterator[NDArray[np.float32]]:
        for depth in _each(train, lambda index: _framed(read_depth(train, index), protocol), indices):
            progress.advance()
            yield depth

    predictor = MedianDepthMap(*limits).fit(maps())
    if place is not None:
        keep_map(place, predictor.predict())
    return predictor


def _score(test: Source, index: int, predictor: MedianDepthMap, protocol: Protocol) -> _Row | None:
    ids: Sequence[str] | None = getattr(test, "ids", None)
    if isinstance(test, DepthSource) and ids is not None:
        depth, name = test.depth(index), ids[index]
    else:
        sample = test[index]
        depth, name = sample.depth, sample.id
    if depth is None:
        return None
    truth = _framed(depth, protocol)
    prediction = predictor.predict((truth.shape[0], truth.shape[1]))
    return {"id": name, **evaluate_image(prediction, truth, protocol)}


def _each(source: Source, work: Callable[[int], _T], indices: Sequence[int]) -> Iterator[_T]:
    """Results in order; several threads read sources of files, since other sources may not support threads."""
    return ahead(work, indices, workers()) if isinstance(source, DepthSource) else map(work, indices)


def _framed(depth: NDArray[np.float32] | None, protocol: Protocol) -> NDArray[np.float32]:
    assert depth is not None, "training and test sources return only images with depth"
    return cut_frame(torch.from_numpy(depth)[None, None], protocol)[0, 0].numpy()
