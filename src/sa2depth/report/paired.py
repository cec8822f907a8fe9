"""Compare two evaluations of the same images image by image, which shows differences that two means hide."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from sa2depth.errors import ConfigError, DataError
from sa2depth.report.metric_facts import facts_of
from sa2depth.report.run_files import ImageScore, RunFiles
from sa2depth.report.tables import NOT_APPLICABLE

# entries of a protocol that do not affect a score, or only repeat another entry
_NO_RULE = {"description", "averaging"}


@dataclass(frozen=True)
class PairedMetric:
    """Difference of one metric over the images of both runs.

    Attributes:
        name: The metric.
        mean: Mean of the run over these images.
        other_mean: Mean of the other run over these images.
        difference: ``mean - other_mean``.
        standard_error: Standard error of the difference, if the images are independent; NaN for a single image.
        better: Share of images on which the run is better, in [0, 1]; NaN if no direction is better.
        equal: Share of images with the same value.
    """

    name: str
    mean: float
    other_mean: float
    difference: float
    standard_error: float
    better: float
    equal: float

    @property
    def worse(self) -> float:
        """Share of images on which the run is worse."""
        return 1.0 - self.better - self.equal


@dataclass(frozen=True)
class Comparison:
    """A comparison of a run with another.

    Attributes:
        other: The other run.
        metrics: One entry for each metric that both report.
        changes: ``(id, run's abs_rel, other's abs_rel)`` of each image, most improved first.
        main: The metric of ``changes``.
        only_here: Number of images that the other run lacks.
        only_there: Number of images that this run lacks.
        unscored: Number of shared images without a finite value in one of the runs.
    """

    other: RunFiles
    metrics: tuple[PairedMetric, ...]
    changes: tuple[tuple[str, float, float], ...]
    main: str
    only_here: int
    only_there: int
    unscored: int


def compare(run: RunFiles, other: RunFiles) -> Comparison:
    """Compare two runs image by image, matched by id.

    Args:
        run: The run that the page is about.
        other: The run to compare with.

    Returns:
        Paired differences ``run - other``.

    Raises:
        ConfigError: The protocols differ (name, version or a rule).
        DataError: A table is missing, an id is not unique, no image is in both, or an image was scored on different
            numbers of pixels.
    """
    _require_same_protocol(run, other)
    mine, theirs = _by_id(run), _by_id(other)
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise DataError(
            f"{run.folder} and {other.folder} share no image: expected equal ids in per_image.csv, found for example "
            f"'{next(iter(mine))}' and '{next(iter(theirs))}'"
        )
    moved = [name for name in shared if mine[name].pixels != theirs[name].pixels]
    if moved:
        raise DataError(
            f"{run.folder} and {other.folder} scored different pixels of {len(moved)} of {len(shared)} images "
            f"('{moved[0]}': {mine[moved[0]].pixels} and {theirs[moved[0]].pixels} pixels): their ground truth "
            "differs, so a comparison would not be about the models. Evaluate both on the same data"
        )
    names = [name for name in run.names if name in other.names]
    names = [name for name in names if all(name in next(iter(t.values())).scores for t in (mine, theirs))]
    main = "abs_rel" if "abs_rel" in names else (names or [""])[0]
    pairs = [(mine[name], theirs[name]) for name in shared]
    scored = [pair for pair in pairs if all(_is_scored(image, names) for image in pair)]
    if not names or not scored:
        raise DataError(
            f"{run.folder} and {other.folder} share no metric with a finite value in both: "
            "evaluate both again with the same list of metrics"
        )
    changes = [(a.id, a.scores[main], b.scores[main]) for a, b in scored]
    sign = facts_of(main).better or -1
    changes.sort(key=lambda change: sign * (change[2] - change[1]))
    return Comparison(
        other=other,
        metrics=tuple(_paired(name, scored) for name in names),
        changes=tuple(changes),
        main=main,
        only_here=len(mine) - len(shared),
        only_there=len(theirs) - len(shared),
        unscored=len(shared) - len(scored),
    )


def _paired(name: str, pairs: list[tuple[ImageScore, ImageScore]]) -> PairedMetric:
    a, b = (np.array([pair[side].scores[name] for pair in pairs], np.float64) for side in (0, 1))
    difference = a - b
    better = facts_of(name).better
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    return PairedMetric(
        name=name,
        mean=float(a.mean()),
        other_mean=float(b.mean()),
        difference=float(difference.mean()),
        standard_error=spread / math.sqrt(len(difference)),
        better=float((difference * better > 0).mean()) if better else math.nan,
        equal=float((difference == 0).mean()),
    )


def _is_scored(image: ImageScore, names: list[str]) -> bool:
    return image.pixels > 0 and all(math.isfinite(image.scores[name]) for name in names)


def _by_id(run: RunFiles) -> dict[str, ImageScore]:
    if not run.images:
        raise DataError(
            f"{run.folder} has no rows in per_image.csv, which a comparison needs: evaluate again"
        )
    twice = [name for name, count in Counter(image.id for image in run.images).items() if count > 1]
    if twice:
        raise DataError(
            f"{run.folder}/per_image.csv: the id '{twice[0]}' is not unique, so images cannot be paired: evaluate again"
        )
    return {image.id: image for image in run.images}


def _require_same_protocol(run: RunFiles, other: RunFiles) -> None:
    names = [
        "{} v{}".format(*(r.protocol.get(rule, "?") for rule in ("name", "version"))) for r in (run, other)
    ]
    if names[0] != names[1]:
        raise ConfigError(
            f"{run.folder} was scored by {names[0]}, {other.folder} by {names[1]}: scores of different protocols "
            "cannot be compared. Evaluate both by one protocol"
        )
    # A rule that only one of them has comes from another version of the program, which would have raised `version` if
    # it changed scores.
    both = (run.protocol.keys() & other.protocol.keys()) - _NO_RULE
    pairs = {key: (run.protocol[key], other.protocol[key]) for key in both}
    # predictions from files have no flip or input policy, and may still be compared with a network
    changed = sorted(key for key, (a, b) in pairs.items() if a != b and NOT_APPLICABLE not in (a, b))
    if changed:
        raise ConfigError(
            f"{run.folder} and {other.folder} were both scored by {names[0]}, but with different values of "
            f"{', '.join(changed)}: such scores cannot be compared. Evaluate both by one protocol"
        )
