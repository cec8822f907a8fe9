"""The predictor that every model must beat: the per-pixel median of the training depth maps."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.data.sample import Source
from sa2depth.errors import ShapeError
from sa2depth.metrics import MedianDepthMap, Protocol, aggregate, cut_frame, evaluate_image
from sa2depth.report.examples import spread

MAPS = 2000
"""At most so many training maps, evenly spread: 36,253 of NYU v2 would fill 44 GB of temporary disk."""


def median_baseline(train: Source, test: Source, protocol: Protocol) -> dict[str, Any]:
    """Scores of the best predictor that looks at no image, under the frame and the crop of a protocol.

    Args:
        train: source of the training images.
        test: source of the test images.
        protocol: how the scores are made.

    Returns:
        What `sa2depth.metrics.aggregate` gives, and ``maps``, the number of training maps; ``{"not_run": reason}``
        where these have no common size, so that there is no median of a pixel.
    """
    indices = spread(len(train), MAPS)
    maps = (_framed(train[i].depth, protocol) for i in indices)
    try:
        predictor = MedianDepthMap(protocol.min_depth, protocol.max_depth).fit(maps)
    except ShapeError as error:
        return {"not_run": str(error)}
    rows = []
    for index in range(len(test)):
        sample = test[index]
        if sample.depth is not None:
            truth = _framed(sample.depth, protocol)
            prediction = predictor.predict((truth.shape[0], truth.shape[1]))
            rows.append({"id": sample.id, **evaluate_image(prediction, truth, protocol)})
    return {**aggregate(rows, protocol), "maps": len(indices)}


def _framed(depth: NDArray[np.float32] | None, protocol: Protocol) -> NDArray[np.float32]:
    assert depth is not None, "sources of training and test images hand out images with depth only"
    return cut_frame(torch.from_numpy(depth)[None, None], protocol)[0, 0].numpy()
