"""A listing: everything one split of a data set should hold, whether or not it is on this disk.

The functions of this folder return listings and open no image; `sa2depth.data.source` turns them into samples and
`sa2depth data check` compares them with the disk.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sa2depth.data.frame import Frame, require_files
from sa2depth.errors import DataError


@dataclass(frozen=True)
class Listing:
    """The frames of a split and what is known of them.

    Attributes:
        title: what people are told it is, e.g. ``NYU v2 labelled, test``.
        root: folder in which the files are looked for.
        frames: all frames in their order, those without ground truth included.
        advice: what to do about missing files: the layout expected, where the archives come from.
        size: ``(H, W)`` of all images, or None where they differ.
        depth_range: metres between which measured depths of this data set lie; values outside hint at a wrong
            scale.
        expected: number of frames that the published list has; None for sets without one.

    Raises:
        DataError: two frames share an id, or the number of frames is not the expected one.
    """

    title: str
    root: Path
    frames: tuple[Frame, ...]
    advice: str
    size: tuple[int, int] | None = None
    depth_range: tuple[float, float] = (0.0, math.inf)
    expected: int | None = None

    def __post_init__(self) -> None:
        ids = Counter(frame.id for frame in self.frames)
        if twice := [name for name, count in ids.items() if count > 1]:
            raise DataError(f"{self.title}: {len(twice)} ids occur more than once, first '{twice[0]}'")
        if self.expected is not None and len(self.frames) != self.expected:
            raise DataError(
                f"{self.title}: {len(self.frames):,} frames are listed, {self.expected:,} belong to it"
            )

    @property
    def without_truth(self) -> list[str]:
        """Ids of the frames that have no ground truth by the data set's own account."""
        return [frame.id for frame in self.frames if frame.depth is None]

    def require(self, frames: Sequence[Frame] | None = None) -> None:
        """Fail unless the files of ``frames`` are there; of all frames where none are named.

        Raises:
            DataError: see `sa2depth.data.frame.require_files`.
        """
        require_files(
            self.frames if frames is None else frames, dataset=self.title, root=self.root, advice=self.advice
        )
