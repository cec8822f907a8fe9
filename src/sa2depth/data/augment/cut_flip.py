"""Cut-flip: the upper and the lower part of an image change places.

Source: URCDC-Depth, also used by IEBins and SA2Depth (``Cut_Flip`` in their loader). Despite its name
nothing is mirrored: the image is cut along one row, drawn uniformly between 20 % and 80 % of its height, and
the band below the cut is put on top of the band above it. The horizon jumps, so that the network cannot learn
"higher up is farther away".
"""

from dataclasses import replace

import numpy as np

from sa2depth.data.sample import RawSample

CUT_RANGE = (0.2, 0.8)
"""Interval of the new upper band's share of the height, ends included."""


def cut_flip(sample: RawSample, rng: np.random.Generator) -> RawSample:
    """Swap the bands of image and depth alike.

    The intrinsics stay as they are: two bands with two horizons have no common camera.
    """
    height = sample.image.shape[0]
    shift = int(rng.integers(int(CUT_RANGE[0] * height), int(CUT_RANGE[1] * height), endpoint=True))
    depth = None if sample.depth is None else np.roll(sample.depth, shift, axis=0)
    return replace(sample, image=np.roll(sample.image, shift, axis=0), depth=depth)
