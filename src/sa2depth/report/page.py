"""One self-contained HTML page about an evaluation: scores, how they were measured, charts, pictures, every image.

Nothing is fetched: style, script, charts and pictures are inside, and the page's own security policy forbids
any request. It works without the script, which only sorts and searches the table of images.
"""

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sa2depth.atomic import atomic_path
from sa2depth.errors import DataError
from sa2depth.report import charts
from sa2depth.report.circumstances import circumstances
from sa2depth.report.embed import data_uri
from sa2depth.report.metric_facts import MetricFacts, facts_of, headline_names, number_text, scores_of
from sa2depth.report.paired import Comparison, compare
from sa2depth.report.run_files import ImageScore, RunFiles, read_run
from sa2depth.version import __version__

_HERE = Path(__file__).parent
_PICTURE_BYTES = 9_000_000  # of all pictures together, before base64: a page can be sent by mail
_KINDS = {
    "worst": ("Worst images", "The largest {main} of the split."),
    "best": ("Best images", "The smallest {main} of the split."),
    "spread": ("Across the split", "Images at even steps through the split."),
}
_FILES = ("metrics.json", "per_image.csv", "by_depth.csv", "metrics.csv")
_DEPTH_METRICS = ("abs_rel", "rmse", "d1", "bias")
_MOST_CHANGES = 5


def write_page(
    run: Path | str | RunFiles, path: Path | str | None = None, others: Sequence[Path | str | RunFiles] = ()
) -> Path:
    """Write the page of a run.

    Args:
        run: The run's folder, or what ``read_run`` made of it.
        path: The HTML file; ``report.html`` in the run's folder where not given.
        others: Runs to compare with, of the same protocol.

    Returns:
        The path of the page.

    Raises:
        DataError: A run without ``metrics.json``, a file that is not what it should be, or runs whose images
            cannot be paired.
        ConfigError: The protocols of the runs differ.
    """
    files = run if isinstance(run, RunFiles) else read_run(run)
    target = files.folder / "report.html" if path is None else Path(path)
    comparisons = [compare(files, o if isinstance(o, RunFiles) else read_run(o)) for o in others]
    text = render_page(files, target.resolve().parent, comparisons)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def render_page(run: RunFiles, folder: Path, comparisons: Sequence[Comparison] = ()) -> str:
    """The page as text.

    Args:
        run: What it is about.
        folder: Where the page will lie, for links to the run's tables.
        comparisons: ``compare(run, other)`` of each other run.

    Returns:
        HTML.
    """
    # Everything from files is escaped by the template engine; charts are escaped where they are made.
    engine = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_HERE),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters["number"] = number_text
    engine.filters["exact"] = _exact
    gaps = list(run.gaps)
    facts = [facts_of(name) for name in run.names]
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return engine.get_template("page.html.j2").render(
        run=run,
        facts=facts,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headlines=[(facts_of(name), run.means[name]) for name in headline_names(run.names)],
        baseline_words=_baseline_words(run),
        scores=_score_table(run, facts, comparisons),
        circumstances=circumstances(run.document),
        alarm=_Alarm(run),
        depth=_depth_section(run),
        distributions=_distributions(run, facts),
        cumulative=_cumulative(run, comparisons),
        pictures=_picture_groups(run, gaps),
        table=_image_table(run, facts),
        comparisons=[_comparison(comparison) for comparison in comparisons],
        links=_links(run, folder),
        gaps=gaps,
        legend=charts.legend,
        version=__version__,
    )


class _Alarm:
    """What makes a score less than it seems."""

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


def _score_table(
    run: RunFiles, facts: Sequence[MetricFacts], comparisons: Sequence[Comparison]
) -> Mapping[str, Any]:
    """Columns (this run, other runs, baselines) and one row a metric, the best value of each marked."""
    baselines = _baselines(run)
    measured = {name: scores for name, scores in baselines.items() if any(m in scores for m in run.names)}
    columns: list[tuple[str, Mapping[str, float]]] = [("This run", run.means)]
    columns += [(c.other.title, scores_of(c.other.means, run.names)) for c in comparisons]
    columns += [(name, scores_of(scores, run.names)) for name, scores in measured.items()]
    rows = []
    for fact in facts:
        values = [scores[fact.name] for _, scores in columns]
        finite = [fact.better * value for value in values if math.isfinite(value)]
        best = max(finite) if finite and fact.better and len(values) > 1 else None
        rows.append((fact, [(value, best is not None and fact.better * value == best) for value in values]))
    # counts of a baseline, or why it was not run
    notes = [
        (name, [(key, value) for key, value in scores.items() if key not in run.names])
        for name, scores in baselines.items()
    ]
    return {
        "columns": [name for name, _ in columns],
        "rows": rows,
        "notes": [note for note in notes if note[1]],
    }


def _baselines(run: RunFiles) -> Mapping[str, Mapping[str, Any]]:
    """Name in words -> scores, counts and notes."""
    entries = run.document.get("baselines")
    entries = entries if isinstance(entries, dict) else {}
    return {
        str(name).replace("_", " "): scores for name, scores in entries.items() if isinstance(scores, dict)
    }


def _baseline_words(run: RunFiles) -> list[str]:
    """How far the run is from each baseline, in its first headline metric."""
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


def _depth_section(run: RunFiles) -> Mapping[str, Any] | None:
    if not run.by_depth:
        return None
    names = [_interval(row) for row in run.by_depth]
    total = math.fsum(row["pixels"] for row in run.by_depth if math.isfinite(row["pixels"]))
    shares = [row["pixels"] / total if total else math.nan for row in run.by_depth]
    bars: list[tuple[str, list[float], charts.Format]] = [("Share of pixels", shares, _percent)]
    for name in _DEPTH_METRICS:
        values = [row[name] for row in run.by_depth]
        if name == "d1":  # bars begin at zero, where all shares near 1 look the same
            bars.append(("Share of pixels with δ ≥ 1.25", [1.0 - value for value in values], _percent))
        else:
            bars.append((_depth_label(name), values, number_text))
    panels = [
        (title, charts.columns(names, heights, "true depth (m)", form)) for title, heights, form in bars
    ]
    return {
        "rows": list(zip(names, shares, run.by_depth, strict=True)),
        "metrics": [(name, _depth_label(name)) for name in _DEPTH_METRICS],
        "panels": [(title, chart) for title, chart in panels if chart],
    }


def _distributions(run: RunFiles, facts: Sequence[MetricFacts]) -> list[Mapping[str, Any]]:
    """A histogram and a few numbers for each metric of ``per_image.csv``."""
    panels: list[Mapping[str, Any]] = []
    for fact in facts:
        values = [image.scores.get(fact.name, math.nan) for image in run.images]
        finite = sorted(value for value in values if math.isfinite(value))
        if not finite:
            continue
        quantiles = [(share, _quantile(finite, share)) for share in (0.05, 0.5, 0.95)]
        panels.append(
            {
                "fact": fact,
                "chart": charts.histogram(finite, f"{fact.label}{f' ({fact.unit})' if fact.unit else ''}"),
                "mean": math.fsum(finite) / len(finite),
                "quantiles": quantiles,
                "left_out": len(values) - len(finite),
            }
        )
    return panels


def _cumulative(run: RunFiles, comparisons: Sequence[Comparison]) -> Mapping[str, Any] | None:
    """Curves of the first headline metric that is an error."""
    name = next((name for name in headline_names(run.names) if facts_of(name).better < 0), None)
    if name is None or not run.images:
        return None
    series = [
        (title, [image.scores.get(name, math.nan) for image in images])
        for title, images in [
            ("This run", run.images),
            *((c.other.title, c.other.images) for c in comparisons),
        ]
    ]
    fact = facts_of(name)
    chart = charts.cumulative(series, f"{fact.label}{f' ({fact.unit})' if fact.unit else ''}")
    return {"fact": fact, "chart": chart, "names": [title for title, _ in series]} if chart else None


def _picture_groups(run: RunFiles, gaps: list[str]) -> Mapping[str, Any]:
    """Pictures as data URIs, by kind; what cannot be read becomes a gap."""
    by_id = {image.id: image for image in run.images}
    curves, grid = run.file("curves.png"), run.file("grid.png")
    grid = None if run.pictures else grid  # the strips show the same, larger
    singles = [path for path in (curves, grid) if path is not None]
    share = _PICTURE_BYTES // max(1, len(run.pictures) + 2 * len(singles))
    groups: dict[str, list[tuple[str, str, ImageScore | None]]] = {}
    for picture in run.pictures:
        uri = _embed(picture.path, share, gaps)
        if uri:
            groups.setdefault(picture.kind, []).append((uri, picture.id, by_id.get(picture.id)))
    kinds = [kind for kind in _KINDS if kind in groups] + [kind for kind in groups if kind not in _KINDS]
    main = facts_of(headline_names(run.names)[0] if "abs_rel" not in run.names else "abs_rel").label
    titles = {kind: _KINDS.get(kind, (kind.capitalize() or "Pictures", "")) for kind in kinds}
    return {
        "groups": [
            (kind, titles[kind][0], titles[kind][1].format(main=main), groups[kind]) for kind in kinds
        ],
        "curves": curves and _embed(curves, 2 * share, gaps),
        "grid": grid and _embed(grid, 2 * share, gaps),
    }


def _embed(path: Path, most_bytes: int, gaps: list[str]) -> str | None:
    try:
        return data_uri(path, most_bytes)
    except DataError as error:
        gaps.append(f"{error}.")
        return None


def _image_table(run: RunFiles, facts: Sequence[MetricFacts]) -> Mapping[str, Any]:
    """Rows of all images, the worst first, those without a score at the end."""
    names = [fact for fact in facts if run.images and fact.name in run.images[0].scores]
    main = next((fact for fact in names if fact.name == "abs_rel"), names[0] if names else None)

    def place(image: ImageScore) -> tuple[bool, float]:
        value = image.scores[main.name] if main else math.nan
        sign = (main.better if main else 0) or -1
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value

    width = max((len(image.id) for image in run.images), default=0) + 2
    return {"facts": names, "main": main, "rows": sorted(run.images, key=place), "id_width": width}


def _comparison(comparison: Comparison) -> Mapping[str, Any]:
    fact = facts_of(comparison.main)
    differences = [mine - theirs for _, mine, theirs in comparison.changes]

    def side(difference: float) -> str:
        return {1: "better", -1: "worse", 0: ""}[fact.favours(difference, 0.0)]

    gained = [c for c in comparison.changes if fact.favours(c[1], c[2]) > 0]
    lost = [c for c in reversed(comparison.changes) if fact.favours(c[1], c[2]) < 0]
    return {
        "it": comparison,
        "fact": fact,
        "images": len(comparison.changes),
        "rows": [(facts_of(metric.name), metric) for metric in comparison.metrics],
        "main": next(metric for metric in comparison.metrics if metric.name == comparison.main),
        "chart": charts.histogram(differences, f"{fact.label}: this run − the other", side),
        "left_out": [
            f"{count} {words}"
            for count, words in (
                (comparison.only_here, "only in this run"),
                (comparison.only_there, "only in the other"),
                (comparison.unscored, "without a score"),
            )
            if count
        ],
        "gained": gained[:_MOST_CHANGES],
        "lost": lost[:_MOST_CHANGES],
    }


def _links(run: RunFiles, folder: Path) -> list[tuple[str, str]]:
    """Name and relative address of the run's tables."""
    there = [path for name in _FILES if (path := run.file(name))]
    try:
        return [(path.name, quote(Path(os.path.relpath(path, folder)).as_posix())) for path in there]
    except ValueError:  # another drive of Windows
        return [(path.name, path.as_uri()) for path in there]


def _depth_label(name: str) -> str:
    return "Bias, mean of p − g (m)" if name == "bias" else facts_of(name).label + _unit(name)


def _unit(name: str) -> str:
    unit = facts_of(name).unit
    return f" ({unit})" if unit else ""


def _interval(row: Mapping[str, float]) -> str:
    low, high = row["from"], row["to"]
    return f"{low:g}–{high:g}" if math.isfinite(high) else f"≥ {low:g}"


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest values."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _percent(share: float) -> str:
    return "none" if math.isnan(share) else f"{100 * share:.3g} %"


def _exact(value: Any) -> str:
    """A number as the file has it."""
    return "null" if value is None or (isinstance(value, float) and math.isnan(value)) else repr(value)


def _count(document: Mapping[str, Any], key: str) -> int:
    value = document.get(key)
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _words(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []
