"""The label, format and better direction of each metric, for tables that people read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricFacts:
    """Facts that tables need to show a metric.

    Attributes:
        name: Key in ``metrics.json``.
        label: Usual name in the field.
        meaning: Formula in words; p is the prediction, g the ground truth.
        unit: Unit of the number, empty if it has none.
        better: -1 if lower is better, 1 if higher is, 0 if not known.
        decimals: Digits after the point.
    """

    name: str
    label: str
    meaning: str = ""
    unit: str = ""
    better: int = 0
    decimals: int = 4

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def favours(self, value: float, other: float) -> int:
        """1 if ``value`` is better than ``other``, -1 if it is worse, 0 if they are equal or no direction is known."""
        return self.better * ((value > other) - (value < other))


_KNOWN = {
    facts.name: facts
    for facts in (
        MetricFacts("abs_rel", "AbsRel", "mean of |p − g| / g", better=-1),
        MetricFacts("sq_rel", "SqRel", "mean of (p − g)² / g", "m", -1),
        MetricFacts("rmse", "RMSE", "root of the mean of (p − g)²", "m", -1),
        MetricFacts("log_rmse", "RMSE log", "root of the mean of (ln p − ln g)²", "", -1),
        MetricFacts("log10", "log10", "mean of |log₁₀ p − log₁₀ g|", "", -1),
        MetricFacts("silog", "SILog", "100 × standard deviation of ln p − ln g", "", -1, 3),
        MetricFacts("d1", "δ < 1.25", "share of pixels with max(p/g, g/p) < 1.25", "", 1),
        MetricFacts("d2", "δ < 1.25²", "share of pixels with max(p/g, g/p) < 1.25²", "", 1),
        MetricFacts("d3", "δ < 1.25³", "share of pixels with max(p/g, g/p) < 1.25³", "", 1),
        MetricFacts("sq_error_rel", "sqErrorRel", "100 × mean of ((p − g) / g)²", "%", -1, 3),
        MetricFacts("abs_error_rel", "absErrorRel", "100 × mean of |p − g| / g", "%", -1, 3),
        MetricFacts("irmse", "iRMSE", "root of the mean of (1/p − 1/g)²", "1/km", -1, 3),
        MetricFacts("imae", "iMAE", "mean of |1/p − 1/g|", "1/km", -1, 3),
    )
}
_HEADLINES = ("abs_rel", "rmse", "d1")


def facts_of(name: str) -> MetricFacts:
    """Facts of a metric; an unknown one keeps its own name and has no better direction."""
    return _KNOWN.get(name, MetricFacts(name, name))


def metric_order(names: Iterable[str], wanted: Iterable[str] = ()) -> tuple[str, ...]:
    """Names in the order of the protocol (``wanted``) if it has one, else in the usual order; unknown names last."""
    present = list(names)
    order = [*dict.fromkeys([*wanted, *_KNOWN, *sorted(present)])]
    return tuple(name for name in order if name in present)


def headline_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The few metrics at the top of the page: KITTI's official four if they are reported, else the usual three."""
    if "irmse" in names:
        return names[:4]
    return tuple(name for name in _HEADLINES if name in names) or names[:3]


def number_text(value: float | None, decimals: int = 4) -> str:
    """Format a number for people: rounded, with a true minus sign; NaN and None become words, not a blank cell."""
    if value is None or math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    text = f"{value:.{decimals}f}"
    if value != 0 and float(text) == 0:
        text = f"{value:.1e}"
    return text.replace("-", "−")


def as_number(value: Any) -> float:
    """Read a number of a JSON document, which writes NaN as null; anything that is not a number becomes NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)


def scores_of(mapping: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """The named numbers of a mapping, NaN where one is missing or null."""
    return {name: as_number(mapping.get(name)) for name in names}
