"""The images that a report shows: the best, the worst, and some spread over the split.

The best and worst are known only after the last image, and keeping all images would fill the memory. So each process
keeps only its current candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sa2depth.metrics.collection import DepthMetrics
from sa2depth.metrics.view import View

Kind = Literal["worst", "best", "spread"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Example(NamedTuple):
    """An image for the pictures, on the CPU.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        truth: ``(H, W)`` float32 metres, 0 = not measured.
        prediction: ``(H, W)`` float32 metres.
        id: name of the image.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    prediction: NDArray[np.float32]
    id: str

    @classmethod
    def of(cls, image: Tensor, truth: Tensor, prediction: Tensor, name: str) -> "Example":
        """Make an example from ``image (3, H, W)`` in [0, 1], and ``truth``, ``prediction (1, H, W)`` in metres."""
        picture = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        truth, prediction = truth.detach()[0].float().cpu(), prediction.detach()[0].float().cpu()
        return cls(np.ascontiguousarray(picture), truth.numpy().copy(), prediction.numpy().copy(), name)


class Examples:
    """Candidates for the pictures among the images of one process: at most ``3 * count``.

    The best images of a split are among the best of their process, so the process that saw an image always still holds
    it when `choose` selects it from the gathered table.

    Args:
        count: images of each kind.
        total: images of the whole split, for the kind ``spread``.
    """

    def __init__(self, count: int = 6, total: int = 0) -> None:
        self.count, self.total = count, total
        self._spread = set(spread(total, count))
        self._kept: dict[int, Example] = {}
        self._errors: dict[int, float] = {}

    def offer(self, index: int, error: float, make: Callable[[], Example]) -> None:
        """Keep an image if it is a candidate now, and drop the one that no longer is.

        Args:
            index: its place in the split.
            error: its ``abs_rel``; NaN for an image without a scored pixel, which can only be of the kind ``spread``.
            make: makes the example; called only if the image is kept.
        """
        scored = error == error
        if scored:
            self._errors[index] = error
        wanted = _extremes(self._errors, self.count)
        if index in self._spread or index in wanted:
            self._kept[index] = make()
        self._errors = {i: e for i, e in self._errors.items() if i in wanted}
        self._kept = {i: kept for i, kept in self._kept.items() if i in wanted or i in self._spread}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, index: int) -> Example | None:
        """The example of an image, if this process holds it."""
        return self._kept.get(index)


def offer_all(examples: Examples, metrics: DepthMetrics, view: View, prediction: Tensor) -> None:
    """Offer the last batch that ``metrics`` was updated with: a view and its ``prediction (B, 1, h, w)`` in metres."""
    errors = zip(view.index.tolist(), metrics.latest("abs_rel"), strict=True)
    for (index, error), *example in zip(errors, view.image, view.truth, prediction, view.ids, strict=True):
        examples.offer(index, error, partial(Example.of, *example))


def choose(table: Sequence[Mapping[str, Any]], count: int, total: int) -> dict[Kind, list[Mapping[str, Any]]]:
    """Choose the images to show from the table of the whole split; each kind starts with its most extreme image.

    Args:
        table: rows with ``index``, ``abs_rel`` and ``pixels``.
        count: images of each kind.
        total: images of the split, the same number as in `Examples`.
    """
    rows = {row["index"]: row for row in table}
    order = _order({index: row["abs_rel"] for index, row in rows.items() if row["pixels"] > 0})
    chosen: dict[Kind, list[int]] = {
        "worst": order[::-1][:count],
        "best": order[:count],
        "spread": [index for index in spread(total, count) if index in rows],
    }
    return {kind: [rows[index] for index in indices] for kind, indices in chosen.items()}


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` different indices, evenly spread from the first image to the last."""
    steps = max(count - 1, 1)
    return sorted({i * (total - 1) // steps for i in range(count)}) if total > 0 else []


def _order(errors: Mapping[int, float]) -> list[int]:
    """Indices from the smallest error to the largest; if errors are equal, the later image counts as worse."""
    return sorted(errors, key=lambda index: (errors[index], index))


def _extremes(errors: Mapping[int, float], count: int) -> set[int]:
    order = _order(errors)
    return {*order[:count], *order[max(len(order) - count, 0) :]}
