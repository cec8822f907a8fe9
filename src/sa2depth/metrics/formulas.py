"""The error measures of depth estimation, each one line over the scored pixels, in float64.

Nine are those of Eigen et al. (2014) as in the released ``compute_errors``; the others are KITTI's own (development
kit of the depth benchmark, Uhrig et al. 2017) in the units of its leaderboard.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

METRICS = ("silog", "abs_rel", "log10", "rmse", "sq_rel", "log_rmse", "d1", "d2", "d3")
OFFICIAL_METRICS = ("sq_error_rel", "abs_error_rel", "irmse", "imae")
KNOWN_METRICS = METRICS + OFFICIAL_METRICS
_PER_KILOMETRE = 1000.0
_PERCENT = 100.0


class Errors:
    """Differences of two sets of depths, computed on first use.

    Args:
        guess: ``(n,)`` predicted metres, float64, positive.
        truth: ``(n,)`` true metres, float64, positive.
    """

    def __init__(self, guess: torch.Tensor, truth: torch.Tensor) -> None:
        self.guess = guess
        self.truth = truth

    @cached_property
    def plain(self) -> torch.Tensor:
        """Prediction minus truth, metres."""
        return self.guess - self.truth

    @cached_property
    def relative(self) -> torch.Tensor:
        """Prediction minus truth as a share of the truth."""
        return self.plain / self.truth

    @cached_property
    def log(self) -> torch.Tensor:
        """Difference of the natural logarithms."""
        return self.guess.log() - self.truth.log()

    @cached_property
    def inverse(self) -> torch.Tensor:
        """Difference of the inverse depths, 1/m."""
        return self.guess.reciprocal() - self.truth.reciprocal()

    @cached_property
    def ratio(self) -> torch.Tensor:
        """The larger depth over the smaller one, at least 1."""
        return torch.maximum(self.guess / self.truth, self.truth / self.guess)

    def within(self, power: int) -> torch.Tensor:
        """1 where prediction and truth differ by less than a factor of ``1.25 ** power``, else 0."""
        return (self.ratio < 1.25**power).double()


_FORMULAS: dict[str, Callable[[Errors], torch.Tensor]] = {
    # OFFICIAL: sqrt(mean(e^2) - mean(e)^2), which rounds below zero on exactly scaled predictions (NaN in the
    # released float32 code); the equal mean of squares never does.
    "silog": lambda e: _PERCENT * (e.log - e.log.mean()).square().mean().sqrt(),
    "abs_rel": lambda e: e.relative.abs().mean(),
    "log10": lambda e: e.log.abs().mean() / math.log(10.0),
    "rmse": lambda e: e.plain.square().mean().sqrt(),
    # divided by the truth once, as in Eigen's papers and code; KITTI's `sq_error_rel` divides by its square
    "sq_rel": lambda e: (e.plain.square() / e.truth).mean(),
    "log_rmse": lambda e: e.log.square().mean().sqrt(),
    "d1": lambda e: e.within(1).mean(),
    "d2": lambda e: e.within(2).mean(),
    "d3": lambda e: e.within(3).mean(),
    "sq_error_rel": lambda e: _PERCENT * e.relative.square().mean(),
    "abs_error_rel": lambda e: _PERCENT * e.relative.abs().mean(),
    "irmse": lambda e: _PER_KILOMETRE * e.inverse.square().mean().sqrt(),
    "imae": lambda e: _PER_KILOMETRE * e.inverse.abs().mean(),
}
assert tuple(_FORMULAS) == KNOWN_METRICS


def measure(errors: Errors, names: Sequence[str]) -> torch.Tensor:
    """``(len(names),)`` float64: the named errors, NaN if there is no pixel.

    Units: ``silog`` times 100; ``rmse`` metres; ``sq_rel`` metres; ``d1..d3`` shares in [0, 1];
    ``sq_error_rel`` and ``abs_error_rel`` percent; ``irmse`` and ``imae`` 1/km; the others have none.

    Args:
        errors: Errors of one image.
        names: Names from ``KNOWN_METRICS``.
    """
    return torch.stack([_FORMULAS[name](errors) for name in names])
