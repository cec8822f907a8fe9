"""Scores of a whole split: one row an image, kept in float64 and averaged once, over any number of processes.

The average is the mean of the per-image errors, as in the released ``eval.py`` (not pooled over pixels).
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torchmetrics import Metric

from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics.by_depth import SUMS_PER_RANGE, range_rows, range_sums
from sa2depth.metrics.formulas import measure
from sa2depth.metrics.image import COUNTS, score_pixels
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.protocol_files import ProtocolLike, load_protocol
from sa2depth.threads import few_threads

_LOG = logging.getLogger(__name__)
_END = 0  # the byte that ends an id

Row = dict[str, Any]


class DepthMetrics(Metric):
    """Per-image depth errors and their mean (a torchmetrics ``Metric``).

    Each process keeps rows of the images it saw; counts may differ between processes, none at all included.
    Every image must be seen once: a padded sampler that repeats images is refused, since it would shift the
    mean.

    Args:
        protocol: A ``Protocol``, or its name, file or mapping.
        kwargs: Of ``torchmetrics.Metric``; results are always those of all processes.

    Raises:
        ConfigError: Unknown protocol.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    rows: list[torch.Tensor]
    ids: list[torch.Tensor]

    def __init__(self, protocol: ProtocolLike, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "sync_on_compute": False})  # see `_gathered`
        self.protocol = load_protocol(protocol)
        self._columns = ("index", *self.protocol.metrics, *COUNTS)
        self._width = len(self._columns) + SUMS_PER_RANGE * max(len(self.protocol.depth_ranges) - 1, 0)
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("ids", default=[], dist_reduce_fx="cat")

    def update(
        self, pred: torch.Tensor, depth: torch.Tensor, index: torch.Tensor, ids: Sequence[str] | None = None
    ) -> None:
        """Score a batch.

        Args:
            pred: ``(B,1,H,W)`` predicted metres, of whole images or of the protocol's frame.
            depth: ``(B,1,H,W)`` ground truth in metres of the same size, 0 = not measured.
            index: ``(B,)`` place of each image in its data set.
            ids: B names for tables and messages; the index where not given.

        Raises:
            ShapeError: The shapes do not fit each other or the protocol.
        """
        if pred.ndim != 4 or pred.shape[1] != 1 or pred.shape != depth.shape:
            raise ShapeError(
                "DepthMetrics wants pred and depth of one shape (B, 1, H, W), got "
                f"{tuple(pred.shape)} and {tuple(depth.shape)}"
            )
        names = [str(i) for i in index.tolist()] if ids is None else list(ids)
        if index.shape != pred.shape[:1] or len(names) != len(pred):
            raise ShapeError(
                f"DepthMetrics got {len(pred)} images, {tuple(index.shape)} indices and {len(names)} ids"
            )
        if not len(pred):
            return
        with _few_threads(pred):
            errors = torch.stack([self._row(p[0], d[0]) for p, d in zip(pred, depth, strict=True)])
        self.rows.append(torch.cat([index.to(errors)[:, None], errors], dim=1))
        encoded = b"".join(name.replace("\0", " ").encode() + bytes([_END]) for name in names)
        self.ids.append(torch.tensor(list(encoded), dtype=torch.uint8, device=errors.device))

    def compute(self) -> dict[str, float]:
        """Mean of each error over the images that have scored pixels, and the counts; see ``aggregate``.

        Raises:
            DataError: No image at all, none with a scored pixel, or an image scored twice.
        """
        with self._gathered():
            table = self._table()
        return aggregate(table, self.protocol)

    def table(self) -> list[Row]:
        """Rows of all images of all processes, sorted by ``index``: call it on every process.

        Returns:
            One dict an image: ``id``, ``index``, the protocol's metrics, ``pixels``, ``nonfinite_pixels``.

        Raises:
            DataError: An image was scored twice.
        """
        with self._gathered():
            return self._table()

    def by_depth(self) -> list[Row]:
        """Errors in each of the protocol's ``depth_ranges``, pooled over the pixels of all images.

        Call it on every process.

        Returns:
            One dict an interval of true depth: ``from`` (included) and ``to`` (excluded) in metres,
            ``pixels``, ``abs_rel``, ``rmse`` (metres), ``d1`` (share), ``bias`` (mean of prediction minus
            truth, metres); NaN where there is no pixel. Empty if the protocol names no ranges.

        Raises:
            DataError: An image was scored twice.
        """
        with self._gathered():
            self._table()  # refuses duplicates
            rows = _joined(self.rows)
        sums = [] if rows is None else rows[:, len(self._columns) :].tolist()
        return range_rows(sums, self.protocol.depth_ranges)

    def _row(self, pred: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Errors, counts and sums by depth of one ``(H,W)`` map: all columns but the index, float64."""
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
    def _gathered(self) -> Iterator[None]:
        """Inside, the states hold the rows of all processes.

        ``torchmetrics``' own context leaves the states gathered when something inside it raises, and every
        later question then fails with another error than the first.
        """
        self.sync(dist_sync_fn=self.dist_sync_fn, distributed_available=self.distributed_available_fn)
        try:
            yield
        finally:
            self.unsync(should_unsync=self._is_synced)

    def _table(self) -> list[Row]:
        rows, codes = _joined(self.rows), _joined(self.ids)
        if rows is None or codes is None:
            return []
        names = bytes(codes.tolist()).split(bytes([_END]))[:-1]
        table: list[Row] = []
        for values, name in zip(rows[:, : len(self._columns)].tolist(), names, strict=True):
            row: Row = {"id": name.decode(), **dict(zip(self._columns, values, strict=True))}
            for key in ("index", *COUNTS):
                row[key] = int(row[key])
            table.append(row)
        table.sort(key=lambda row: row["index"])
        _refuse_duplicates(table)
        return table

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A process without images would offer torchmetrics' empty float32 vector, whose type and rank do not
        # match what the other processes gather.
        if not len(self.rows):
            self.rows = [torch.empty(0, self._width, dtype=torch.float64, device=self.device)]
            self.ids = [torch.empty(0, dtype=torch.uint8, device=self.device)]
        super()._sync_dist(*args, **kwargs)


def _few_threads(pred: torch.Tensor) -> AbstractContextManager[None]:
    """The small operations on one map are slower with many threads, whose number only the main thread may change."""
    alone = threading.current_thread() is threading.main_thread()
    return few_threads() if alone and pred.device.type == "cpu" else nullcontext()


def _joined(state: Any) -> torch.Tensor | None:
    """A state in one piece, whether gathered already or not; None while empty."""
    if isinstance(state, torch.Tensor):
        return state
    return torch.cat(state) if state else None


def aggregate(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> dict[str, float]:
    """Mean of per-image errors, in float64 and independent of the order of the rows.

    Images without a scored pixel are left out of the mean, counted, and named in a warning; so are images
    with NaN or infinite predictions, which stay in it.

    Args:
        rows: Results of ``evaluate_image``; ``id`` or ``index`` name the image where given.
        protocol: Whose metrics are averaged; named in the messages.

    Returns:
        The protocol's metrics, ``images`` (those in the mean), ``empty_images``, ``nonfinite_images``,
        ``nonfinite_pixels``.

    Raises:
        DataError: No image at all, or none with a scored pixel.
    """
    if not rows:
        raise DataError("no image was evaluated: check the data folder and the split")
    scored = [row for row in rows if row["pixels"] > 0]
    empty = _names(row for row in rows if row["pixels"] == 0)
    broken = _names(row for row in rows if row["nonfinite_pixels"] > 0)
    nonfinite_pixels = int(sum(row["nonfinite_pixels"] for row in rows))
    span = f"{protocol.min_depth:g}-{protocol.max_depth:g} m"
    if not scored:
        raise DataError(
            f"none of the {len(rows)} images has ground truth within {span} (protocol '{protocol.name}'): "
            f"check the depth scale of the data set. Images: {_some(empty)}"
        )
    if empty:
        _LOG.warning(
            "%d of %d images have no ground truth within %s inside the crop '%s' and are not in the mean: %s",
            len(empty), len(rows), span, protocol.crop, _some(empty),
        )  # fmt: skip
    if broken:
        _LOG.warning(
            "THE MODEL IS BROKEN on %d of %d images: %d NaN or infinite predictions, scored as the released "
            "evaluation does (NaN as the smallest depth, infinity as the largest): %s",
            len(broken), len(rows), nonfinite_pixels, _some(broken),
        )  # fmt: skip
    means = {key: math.fsum(row[key] for row in scored) / len(scored) for key in protocol.metrics}
    return {
        **means,
        "images": len(scored),
        "empty_images": len(empty),
        "nonfinite_images": len(broken),
        "nonfinite_pixels": nonfinite_pixels,
    }


def _refuse_duplicates(table: Sequence[Row]) -> None:
    counts = Counter(row["index"] for row in table)
    twice = [str(index) for index, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} images were scored more than once (indices {_some(twice)}), which shifts the "
            "mean: use a sampler that does not pad (trainer.use_distributed_sampler=False) and reset the "
            "metric between runs"
        )


def _names(rows: Any) -> list[str]:
    return [str(row.get("id", row.get("index", "?"))) for row in rows]


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
