"""One self-contained HTML page about an evaluation: scores, how they were measured, charts, pictures, every image.

The page fetches nothing: style, script, charts and pictures are inside, and its own security policy forbids any
request. It works without the script, which only sorts and searches the table of images.
"""

import base64
import hashlib
import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sa2depth.atomic import atomic_path
from sa2depth.errors import UserError
from sa2depth.report import sections
from sa2depth.report.circumstances import circumstances
from sa2depth.report.metric_facts import facts_of, headline_names, number_text
from sa2depth.report.paired import Comparison, compare
from sa2depth.report.run_files import RunFiles, read_run
from sa2depth.version import __version__

_HERE = Path(__file__).parent
_FILES = ("metrics.json", "per_image.csv", "by_depth.csv", "metrics.csv")


def write_page(
    run: Path | str | RunFiles, path: Path | str | None = None, others: Sequence[Path | str | RunFiles] = ()
) -> Path:
    """Write the page of a run.

    Args:
        run: The run's folder, or the result of ``read_run``.
        path: The HTML file; ``report.html`` in the run's folder by default.
        others: Runs of the same protocol to compare with.

    Returns:
        The path of the page.

    Raises:
        DataError: A run has no ``metrics.json`` or a bad file, or the images of the runs cannot be paired.
        ConfigError: The protocols of the runs differ.
    """
    files = run if isinstance(run, RunFiles) else read_run(run)
    target = files.folder / "report.html" if path is None else Path(path)
    comparisons = [compare(files, o if isinstance(o, RunFiles) else read_run(o)) for o in others]
    text = render_page(files, target.resolve().parent, comparisons)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def refresh_page(folder: Path | str) -> Path | None:
    """Write ``report.html`` again if a folder has one, because a run has changed the numbers that the page shows.

    The page compares the same runs as before, unless they are gone or can no longer be compared.

    Args:
        folder: The run's folder.

    Returns:
        The path of the page; None if there is none.
    """
    page = Path(folder) / "report.html"
    if not page.is_file():
        return None
    others = re.findall(r'<meta name="compared-with" content="([^"]*)">', page.read_text(encoding="utf-8"))
    try:
        return write_page(folder, page, [Path(folder) / unquote(other) for other in others])
    except UserError:
        return write_page(folder, page)


def render_page(run: RunFiles, folder: Path, comparisons: Sequence[Comparison] = ()) -> str:
    """The page as text.

    Args:
        run: The run that the page is about.
        folder: The page's future folder, for links to the run's tables.
        comparisons: ``compare(run, other)`` of each other run.

    Returns:
        HTML.
    """
    # The template engine escapes everything from files; charts are escaped where they are made.
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
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return engine.get_template("page.html.j2").render(
        run=run,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headlines=[(facts_of(name), run.means[name]) for name in headline_names(run.names)],
        baseline_words=sections.baseline_words(run),
        scores=sections.score_table(run, comparisons),
        circumstances=circumstances(run.document),
        alarm=sections.Alarm(run),
        depth=sections.error_by_depth(run),
        distributions=sections.distributions(run),
        cumulative=sections.cumulative(run, comparisons),
        pictures=sections.picture_groups(run, gaps),
        table=sections.image_table(run),
        comparisons=[sections.comparison(comparison) for comparison in comparisons],
        compared=[_address(c.other.folder, folder) for c in comparisons],
        written=datetime.fromtimestamp((run.folder / "metrics.json").stat().st_mtime, UTC),
        links=[(name, _address(path, folder)) for name in _FILES if (path := run.file(name))],
        gaps=gaps,
        version=__version__,
    )


def _address(path: Path, folder: Path) -> str:
    """A path as a link in a page inside ``folder``."""
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # another drive of Windows
        return path.as_uri()


def _exact(value: Any) -> str:
    """Write a number as the file has it."""
    return "null" if value is None or (isinstance(value, float) and math.isnan(value)) else repr(value)
