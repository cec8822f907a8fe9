"""Scores of a whole split over any number of processes: one row of float64 numbers per image, keyed by its index.

The rows are gathered as one tensor; names only label them.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed import all_gather_object, get_world_size
from torchmetrics import Metric

from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics.averaging import aggregate, some
from sa2depth.metrics.by_depth import SUMS_PER_RANGE, range_rows, range_sums
from sa2depth.metrics.evaluation import Evaluation
from sa2depth.metrics.formulas import measure
from sa2depth.metrics.image import COUNTS, score_pixels
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.protocol_files import ProtocolLike, load_protocol
from sa2depth.metrics.view import Sizes, View
from sa2depth.threads import few_threads

_SIDES = 6  # columns for the sides in `Sizes`; 0 where no network ran

Row = dict[str, Any]


class DepthMetrics(Metric):
    """Per-image depth errors and their mean (a torchmetrics ``Metric``).

    Each process keeps rows of the images it saw; counts may differ between processes and may be 0. Every image must
    be seen exactly once: repeated images (from a sampler that pads) are refused, since they would shift the mean.

    Args:
        protocol: A ``Protocol``, or its name, file or mapping.
        kwargs: Arguments of ``torchmetrics.Metric``; results always cover all processes.

    Raises:
        ConfigError: The protocol is unknown.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    rows: list[torch.Tensor]

    def __init__(self, protocol: ProtocolLike, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "sync_on_compute": False})  # see `_gathered`
        self.protocol: Protocol = load_protocol(protocol)
        self._columns = ("index", *self.protocol.metrics, *COUNTS)
        self._ranges = SUMS_PER_RANGE * max(len(self.protocol.depth_ranges) - 1, 0)
        self._names: dict[int, str] = {}  # by index, of the images that this process saw
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, pred: torch.Tensor, view: View) -> None:
        """Score a batch.

        Args:
            pred: ``(B,1,h,w)`` predicted metres.
            view: The batch as the protocol cuts it; its truth has the same size.

        Raises:
            ShapeError: The shapes do not fit each other or the protocol.
        """
        if pred.ndim != 4 or pred.shape[1] != 1 or pred.shape != view.truth.shape:
            raise ShapeError(
                "DepthMetrics needs pred and depth of one shape (B, 1, H, W), got "
                f"{tuple(pred.shape)} and {tuple(view.truth.shape)}"
            )
        index = view.index
        if index.shape != pred.shape[:1] or len(view.ids) != len(pred):
            raise ShapeError(
                f"DepthMetrics needs one index and one id per image, got {len(pred)} images, indices of shape "
                f"{tuple(index.shape)} and {len(view.ids)} ids"
            )
        if not len(pred):
            return
        with _few_threads(pred):
            errors = torch.stack([self._row(p[0], d[0]) for p, d in zip(pred, view.truth, strict=True)])
        native, frame, network = view.sizes
        sides = errors.new_tensor([*native, *frame, *(network or (0, 0))]).expand(len(errors), _SIDES)
        self.rows.append(torch.cat([index.to(errors)[:, None], errors, sides], dim=1))
        self._names |= zip(index.tolist(), view.ids, strict=True)

    def latest(self, metric: str) -> list[float]:
        """One of the protocol's metrics for each image of the last `update`."""
        values: list[float] = self.rows[-1][:, self._columns.index(metric)].tolist()
        return values

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._names = {}

    def compute(self) -> dict[str, float]:
        """Mean of each error over the images that have scored pixels, and the counts; see ``aggregate``.

        Raises:
            DataError: There is no image, none has a scored pixel, or an image was scored twice.
        """
        return aggregate(self.table(), self.protocol)

    def table(self) -> list[Row]:
        """Rows of all images of all processes, sorted by ``index``; must be called on every process.

        Returns:
            One dict per image: ``id``, ``index``, the protocol's metrics, ``pixels``, ``nonfinite_pixels``.

        Raises:
            DataError: An image was scored twice.
        """
        with self._gathered() as (rows, names):
            return self._table(rows, names)

    def evaluation(self, **facts: Any) -> Evaluation:
        """All measurements, the same on every process; must be called on every process.

        Args:
            facts: Fields of `Evaluation` that do not follow from the scores, such as ``split_images``.

        Raises:
            DataError: An image was scored twice.
        """
        with self._gathered() as (rows, names):
            table, first = self._table(rows, names), len(self._columns)
            by_depth = range_rows(rows[:, first:-_SIDES].tolist(), self.protocol.depth_ranges)
            sizes = Counter(map(_sizes, rows[:, -_SIDES:].long().tolist()))
        return Evaluation(self.protocol, table, by_depth, sizes, **facts)

    def _row(self, pred: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Errors, counts and sums by depth of one ``(H,W)`` map in float64: all columns except the index."""
        scored = score_pixels(pred, depth, self.protocol)
        pixels = torch.tensor(len(scored.true_depth), device=scored.nonfinite.device)
        return torch.cat(
            [
                measure(scored.errors, self.protocol.metrics),
                torch.stack([pixels, scored.nonfinite]).double(),
                range_sums(scored.errors, scored.true_depth, self.protocol.depth_ranges),
            ]
        )

    @contextmanager
    def _gathered(self) -> Iterator[tuple[torch.Tensor, Mapping[int, str]]]:
        """The rows of all processes and the names of their images.

        ``torchmetrics``' own context leaves the states gathered when something inside it raises, and every later call
        then fails with an error that hides the first.
        """
        self.sync(dist_sync_fn=self.dist_sync_fn, distributed_available=self.distributed_available_fn)
        try:
            names = self._names
            if self._is_synced:
                parts: list[Any] = [None] * get_world_size(self.process_group)
                all_gather_object(parts, names, group=self.process_group)
                names = {index: name for part in parts for index, name in part.items()}
            yield self._joined(), names
        finally:
            self.unsync(should_unsync=self._is_synced)

    def _joined(self) -> torch.Tensor:
        """The rows as one tensor, gathered or not."""
        state: Any = self.rows
        if isinstance(state, torch.Tensor):
            return state
        width = len(self._columns) + self._ranges + _SIDES
        return torch.cat(state) if state else torch.empty(0, width, dtype=torch.float64)

    def _table(self, rows: torch.Tensor, names: Mapping[int, str]) -> list[Row]:
        table: list[Row] = []
        for values in rows[:, : len(self._columns)].tolist():
            row: Row = {"id": names[int(values[0])], **dict(zip(self._columns, values, strict=True))}
            for key in ("index", *COUNTS):
                row[key] = int(row[key])
            table.append(row)
        table.sort(key=lambda row: row["index"])
        _refuse_duplicates(table)
        return table

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A process without images would offer torchmetrics' empty float32 vector, whose type and rank do not
        # match what the other processes gather.
        self.rows = [self._joined().to(self.device)]
        super()._sync_dist(*args, **kwargs)


def _few_threads(pred: torch.Tensor) -> AbstractContextManager[None]:
    """Use few threads, which are faster for small maps; only the main thread may change their number."""
    alone = threading.current_thread() is threading.main_thread()
    return few_threads() if alone and pred.device.type == "cpu" else nullcontext()


def _sizes(sides: Sequence[int]) -> Sizes:
    a, b, c, d, e, f = sides
    return Sizes((a, b), (c, d), (e, f) if e else None)


def _refuse_duplicates(table: Sequence[Row]) -> None:
    counts = Counter(row["index"] for row in table)
    twice = [str(index) for index, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} images were scored more than once (indices {some(twice)}), which shifts the "
            "mean: use a sampler that does not pad (trainer.use_distributed_sampler=False) and reset the "
            "metric between runs"
        )
