"""The content of each section of the page: the values, labels and charts for its part of ``page.html.j2``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa2depth.errors import DataError
from sa2depth.report import charts
from sa2depth.report.embed import data_uri
from sa2depth.report.metric_facts import facts_of, headline_names, number_text, scores_of
from sa2depth.report.paired import Comparison
from sa2depth.report.run_files import ImageScore, RunFiles

_PICTURE_BYTES = 9_000_000  # of all pictures together, before base64, so that a page can be sent by mail
_KINDS = {
    "worst": ("Worst images", "The largest {main} of the split."),
    "best": ("Best images", "The smallest {main} of the split."),
    "spread": ("Across the split", "Images at even steps through the split."),
}
_DEPTH_METRICS = {name: facts_of(name).title for name in ("abs_rel", "rmse", "d1")}
_DEPTH_METRICS["bias"] = "Bias, mean of p − g (m)"
_MOST_CHANGES = 5


class Alarm:
    """Facts that make a score less trustworthy than it seems."""

    def __init__(self, run: RunFiles) -> None:
        document = run.document
        self.nonfinite_images = _count(document, "nonfinite_images")
        self.nonfinite_pixels = _count(document, "nonfinite_pixels")
        self.nonfinite_ids = _words(document.get("nonfinite_ids"))
        self.empty_images = _count(document, "empty_images")
        self.empty_ids = _words(document.get("empty_ids"))
        self.partial = document.get("complete") is False
        self.evaluated = _count(document, "evaluated_images")
        self.expected = run.protocol.get("expected_images") or document.get("split_images") or "more"
        self.undefined = [facts_of(name).label for name, mean in run.means.items() if not math.isfinite(mean)]


def score_table(run: RunFiles, comparisons: Sequence[Comparison]) -> Mapping[str, Any]:
    """Columns (this run, other runs, baselines) and one row per metric, with its best value marked."""
    baselines = _baselines(run)
    columns: list[tuple[str, Mapping[str, float]]] = [("This run", run.means)]
    columns += [(c.other.title, scores_of(c.other.means, run.names)) for c in comparisons]
    columns += [
        (name, scores_of(scores, run.names))
        for name, scores in baselines.items()
        if any(metric in scores for metric in run.names)
    ]
    rows = []
    for fact in map(facts_of, run.names):
        values = [scores[fact.name] for _, scores in columns]
        finite = [fact.better * value for value in values if math.isfinite(value)]
        best = max(finite) if finite and fact.better and len(values) > 1 else None
        rows.append((fact, [(value, best is not None and fact.better * value == best) for value in values]))
    # counts of a baseline, or the reason why it was not run
    notes = [
        (name, [(key, value) for key, value in scores.items() if key not in run.names])
        for name, scores in baselines.items()
    ]
    return {
        "columns": [name for name, _ in columns],
        "rows": rows,
        "notes": [note for note in notes if note[1]],
    }


def baseline_words(run: RunFiles) -> list[str]:
    """Sentences that compare the run with each baseline in its first headline metric."""
    name = headline_names(run.names)[0]
    fact, mean = facts_of(name), run.means[name]
    words = []
    for title, scores in _baselines(run).items():
        base = scores_of(scores, (name,))[name]
        if not (math.isfinite(base) and math.isfinite(mean) and base > 0 and fact.better):
            continue
        change = 100 * (mean - base) / base
        verdict = {1: "better", -1: "worse", 0: "no different"}[fact.favours(mean, base)]
        words.append(
            f"{fact.label} is {abs(change):.0f} % {'lower' if change < 0 else 'higher'} ({verdict}) than that of "
            f"the {title}."
        )
    return words


def error_by_depth(run: RunFiles) -> Mapping[str, Any] | None:
    """Rows and bar charts of the intervals of true depth."""
    if not run.by_depth:
        return None
    names = [_interval(row) for row in run.by_depth]
    total = math.fsum(row["pixels"] for row in run.by_depth if math.isfinite(row["pixels"]))
    shares = [row["pixels"] / total if total else math.nan for row in run.by_depth]
    bars: list[tuple[str, list[float], charts.Format]] = [("Share of pixels", shares, _percent)]
    for name, title in _DEPTH_METRICS.items():
        values = [row[name] for row in run.by_depth]
        if name == "d1":  # bars begin at zero, so shares near 1 would all look the same
            bars.append(("Share of pixels with δ ≥ 1.25", [1.0 - value for value in values], _percent))
        else:
            bars.append((title, values, number_text))
    panels = [
        (title, charts.columns(names, heights, "true depth (m)", form)) for title, heights, form in bars
    ]
    return {
        "rows": list(zip(names, shares, run.by_depth, strict=True)),
        "metrics": _DEPTH_METRICS,
        "panels": [(title, chart) for title, chart in panels if chart],
    }


def distributions(run: RunFiles) -> list[Mapping[str, Any]]:
    """A histogram and a few numbers for each metric of ``per_image.csv``."""
    panels: list[Mapping[str, Any]] = []
    for fact in map(facts_of, run.names):
        values = [image.scores.get(fact.name, math.nan) for image in run.images]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            panels.append(
                {
                    "fact": fact,
                    "chart": charts.histogram(finite, fact.title),
                    "quantiles": np.quantile(finite, (0.05, 0.5, 0.95)).tolist(),
                    "left_out": len(values) - len(finite),
                }
            )
    return panels


def cumulative(run: RunFiles, comparisons: Sequence[Comparison]) -> Mapping[str, Any] | None:
    """Curves of the first headline metric that is an error."""
    name = next((name for name in headline_names(run.names) if facts_of(name).better < 0), None)
    if name is None or not run.images:
        return None
    runs = [("This run", run), *((c.other.title, c.other) for c in comparisons)]
    series = [(title, [image.scores.get(name, math.nan) for image in r.images]) for title, r in runs]
    chart = charts.cumulative(series, facts_of(name).title)
    return {"fact": facts_of(name), "chart": chart, "names": [title for title, _ in runs]} if chart else None


def picture_groups(run: RunFiles, gaps: list[str]) -> Mapping[str, Any]:
    """Pictures as data URIs, by kind; a picture that cannot be read becomes a gap."""
    by_id = {image.id: image for image in run.images}
    curves, grid = run.file("curves.png"), run.file("grid.png")
    grid = None if run.pictures else grid  # the strips show the same at a larger size
    share = _PICTURE_BYTES // max(1, len(run.pictures) + 2 * sum(path is not None for path in (curves, grid)))
    groups: dict[str, list[tuple[str, str, ImageScore | None]]] = {}
    for picture in run.pictures:
        uri = _embed(picture.path, share, gaps)
        if uri:
            groups.setdefault(picture.kind, []).append((uri, picture.id, by_id.get(picture.id)))
    kinds = [kind for kind in _KINDS if kind in groups] + [kind for kind in groups if kind not in _KINDS]
    main = facts_of(headline_names(run.names)[0] if "abs_rel" not in run.names else "abs_rel").label
    titles = {kind: _KINDS.get(kind, (kind.capitalize() or "Pictures", "")) for kind in kinds}
    return {
        "groups": [(titles[kind][0], titles[kind][1].format(main=main), groups[kind]) for kind in kinds],
        "curves": curves and _embed(curves, 2 * share, gaps),
        "grid": grid and _embed(grid, 2 * share, gaps),
    }


def image_table(run: RunFiles) -> Mapping[str, Any]:
    """Rows of all images, the worst first, those without a score at the end."""
    facts = [facts_of(name) for name in run.names if run.images and name in run.images[0].scores]
    main = next((fact for fact in facts if fact.name == "abs_rel"), facts[0] if facts else None)

    def place(image: ImageScore) -> tuple[bool, float]:
        value = image.scores[main.name] if main else math.nan
        sign = (main.better if main else 0) or -1
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value

    width = max((len(image.id) for image in run.images), default=0) + 2
    return {"facts": facts, "main": main, "rows": sorted(run.images, key=place), "id_width": width}


def comparison(it: Comparison) -> Mapping[str, Any]:
    """Compare a run with another: table, chart of differences, and the images that changed most."""
    fact = facts_of(it.main)

    def side(difference: float) -> str:
        return {1: "good", -1: "bad", 0: "accent"}[fact.favours(difference, 0.0)]

    gained = [c for c in it.changes if fact.favours(c[1], c[2]) > 0]
    lost = [c for c in reversed(it.changes) if fact.favours(c[1], c[2]) < 0]
    left_out = {
        "only in this run": it.only_here,
        "only in the other": it.only_there,
        "without a score": it.unscored,
    }
    differences = [mine - theirs for _, mine, theirs in it.changes]
    return {
        "it": it,
        "fact": fact,
        "images": len(it.changes),
        "rows": [(facts_of(metric.name), metric) for metric in it.metrics],
        "main": next(metric for metric in it.metrics if metric.name == it.main),
        "chart": charts.histogram(differences, f"{fact.label}: this run − the other", side),
        "left_out": [f"{count} {words}" for words, count in left_out.items() if count],
        "gained": gained[:_MOST_CHANGES],
        "lost": lost[:_MOST_CHANGES],
    }


def _baselines(run: RunFiles) -> Mapping[str, Mapping[str, Any]]:
    """Readable name -> scores, counts and notes."""
    entries = run.document.get("baselines")
    entries = entries if isinstance(entries, dict) else {}
    return {str(name).replace("_", " "): its for name, its in entries.items() if isinstance(its, dict)}


def _embed(path: Path, most_bytes: int, gaps: list[str]) -> str | None:
    try:
        return data_uri(path, most_bytes)
    except DataError as error:
        gaps.append(f"{error}.")
        return None


def _interval(row: Mapping[str, float]) -> str:
    low, high = row["from"], row["to"]
    return f"{low:g}–{high:g}" if math.isfinite(high) else f"≥ {low:g}"


def _percent(share: float) -> str:
    return "none" if math.isnan(share) else f"{100 * share:.3g} %"


def _count(document: Mapping[str, Any], key: str) -> int:
    value = document.get(key)
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _words(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []
