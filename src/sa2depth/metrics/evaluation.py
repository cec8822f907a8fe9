"""The measurements of an evaluation, before they are written anywhere: rows, sizes, and counts of images left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sa2depth.metrics.averaging import aggregate
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.view import Sizes


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split under a protocol, gathered over all processes.

    Attributes:
        protocol: the rules.
        table: ``DepthMetrics.table()``, a row per image, sorted by index.
        by_depth: `range_rows` of the protocol's ``depth_ranges``: a row per interval of true depth.
        sizes: the number of images of each size.
        split_images: images with ground truth that the split holds; more than were evaluated in a partial run.
        without_truth: images of the split without ground truth, which are not evaluated.
        network: False if predictions were read from files; flip and input policy do not apply then.
        multiple: sides of the network's input were multiples of this many pixels.
    """

    protocol: Protocol
    table: Sequence[Mapping[str, Any]]
    by_depth: Sequence[Mapping[str, Any]] = ()
    sizes: Mapping[Sizes, int] = field(default_factory=dict)
    split_images: int | None = None
    without_truth: int = 0
    network: bool = True
    multiple: int = 32

    @cached_property
    def means(self) -> dict[str, float]:
        """Means over the images, and the counts; see `sa2depth.metrics.aggregate`.

        Raises:
            DataError: no image was evaluated, or none has a scored pixel.
        """
        return aggregate(self.table, self.protocol)

    @property
    def images(self) -> int:
        """Number of evaluated images, including those without a scored pixel."""
        return len(self.table)

    @property
    def complete(self) -> bool:
        """Whether the whole split was evaluated and has the number of images that the protocol expects."""
        whole = self.split_images is None or self.images == self.split_images
        return whole and self.protocol.expected_images in (None, self.images)

    @property
    def frames(self) -> dict[tuple[int, int], int]:
        """Number of images by frame size at which they were scored, the most frequent first."""
        return self._count("frame")

    @property
    def natives(self) -> dict[tuple[int, int], int]:
        """Number of images by size of their file, the most frequent first."""
        return self._count("native")

    @property
    def inputs(self) -> dict[tuple[int, int], int]:
        """Number of images by size at which the network saw them, the most frequent first."""
        return self._count("network")

    def _count(self, kind: str) -> dict[tuple[int, int], int]:
        total: Counter[tuple[int, int]] = Counter()
        for sizes, count in self.sizes.items():
            if size := getattr(sizes, kind):
                total[size] += count
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
