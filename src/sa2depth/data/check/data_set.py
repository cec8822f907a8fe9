"""Check a data set on disk: compare what its splits should hold with what is there.

Nothing here needs torch. Files are opened by threads: decoding a JPEG or PNG releases Python's lock.
"""

import math
import os
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from sa2depth.data.check.frames import (
    MEANING,
    Expected,
    Finding,
    Problem,
    look_at_frame,
    look_at_sample,
    units_of,
)
from sa2depth.data.check.leaks import find_leaks, shared_images, twins
from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import Limited
from sa2depth.data.io.depth_units import Spread, too_near
from sa2depth.data.listing import missing_files
from sa2depth.data.sample import Source
from sa2depth.data.source import FileSource
from sa2depth.data.splits.selection import spread
from sa2depth.threads import usable_cores

_PLAUSIBLE = (0.01, 1000.0)  # metres, for data without a stated range: values outside are in another unit
QUICK = 200
"""Images of a split that a quick check opens."""

_ENOUGH = 20
"""Smallest number of images for which a whole split says something about its unit."""
_AHEAD = 4
"""Queued tasks per worker: enough to keep it busy, few enough to need little memory."""

Advance = Callable[[int], None]


@dataclass
class SplitReport:
    """The findings in one list of frames.

    Attributes:
        name: the splits that take their images from it, e.g. ``train, val``.
        title: its name in the data set.
        folder: folder that should hold its files.
        images: number of images that belong to it.
        without_truth: number of images for which the data set has no ground truth.
        files: number of files that belong to it.
        missing: number of files that do not exist.
        opened: number of images that were opened.
        depth: nearest 1st percentile, median of the medians, and farthest 99th percentile in metres; None without
            any depth.
        problems: all problems.
        notes: harmless oddities.
        advice: advice about missing files.
    """

    name: str
    title: str
    folder: str
    images: int
    without_truth: int = 0
    files: int = 0
    missing: int = 0
    opened: int = 0
    depth: tuple[float, float, float] | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    advice: str = ""


@dataclass
class Report:
    """The findings in a data set.

    Attributes:
        splits: one part for each list of frames.
        leaks: images and places shared by splits that must share nothing.
        quick: only a sample of the images was opened.
        notes: harmless oddities between splits.
    """

    splits: list[SplitReport]
    leaks: list[Problem] = field(default_factory=list)
    quick: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """All problems, those of the splits first."""
        return [problem for split in self.splits for problem in split.problems] + self.leaks

    @property
    def good(self) -> bool:
        """True if there is no problem."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line that says whether the data set may be used."""
        images, opened = sum(s.images for s in self.splits), sum(s.opened for s in self.splits)
        seen = (
            "no image opened"
            if opened == 0
            else (
                f"{opened:,} of {images:,} images opened"
                if opened < images
                else f"all {images:,} images opened"
            )
        )
        if self.good:
            return f"GOOD: {seen}, nothing is wrong{' with those' if opened < images else ''}"
        counts = Counter(problem.kind for problem in self.problems)
        kinds = ", ".join(f"{counts[kind]:,} {kind.replace('_', ' ')}" for kind in MEANING if kind in counts)
        return f"NOT GOOD: {len(self.problems):,} problems ({kinds}); {seen}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        return {
            "good": self.good,
            "verdict": self.verdict,
            "quick": self.quick,
            "splits": [
                {
                    **{k: v for k, v in vars(split).items() if k not in ("problems", "depth")},
                    "depth_m": None
                    if split.depth is None
                    else dict(zip(("low", "median", "high"), split.depth, strict=True)),
                    "problems": [asdict(problem) for problem in split.problems],
                }
                for split in self.splits
            ],
            "notes": self.notes,
            "leaks": [asdict(problem) for problem in self.leaks],
        }


@dataclass
class _Part:
    """A list of frames, or a source that makes its samples, with the splits that use it."""

    names: list[str]
    source: Source

    @property
    def frames(self) -> tuple[Frame, ...]:
        """All frames of the list, used by the splits or not."""
        if not isinstance(self.source, FileSource):
            return ()
        return self.source.frames if self.source.listing is None else self.source.listing.frames


def parts(sources: Mapping[str, Source]) -> list[_Part]:
    """The lists behind the splits, each once: a training list divided into train and val counts once."""
    found: dict[Any, _Part] = {}
    for name, source in sources.items():
        listing = source.listing if isinstance(source, FileSource) else None
        key: Any = id(source)
        if listing is not None:
            # Two different lists of a user may share title and folder.
            key = listing.title, listing.root, tuple(frame.id for frame in listing.frames)
        found.setdefault(key, _Part([], source)).names.append(name)
    return list(found.values())


def image_count(sources: Mapping[str, Source], quick: bool = False) -> int:
    """Number of images that `check` will open, missing ones included."""
    counts = (len(part.frames) or len(part.source) for part in parts(sources))
    return sum(min(count, QUICK) if quick else count for count in counts)


def check(
    sources: Mapping[str, Source],
    workers: int | None = None,
    quick: bool = False,
    advance: Advance = lambda count: None,
    unlisted: Mapping[str, str] | None = None,
) -> Report:
    """Look for every file of the splits and open all of them.

    The whole list behind a split is checked, even if a configuration uses only some of its images.

    Args:
        sources: by split name (``train``, ``val``, ``test``), made inside
            `sa2depth.data.source.missing_files_allowed`.
        workers: threads; None: one for each usable core, at most 8 (on 16 cores, 16 threads were slower than 8).
        quick: look for all files, but open only ``QUICK`` images of each list, evenly spread.
        advance: called with the number of images finished since the last call.
        unlisted: splits that could not be listed, with the error: they are reported beside the others.
    """
    count = max(1, min(8, usable_cores()) if workers is None else workers)
    digests: dict[str, bytes] = {}
    # Each thread decodes an image of its own: OpenCV's threads would only compete for the cores.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        with ThreadPoolExecutor(count) as pool:
            reports = [
                _check_part(part, partial(_in_order, pool, count * _AHEAD), quick, advance, digests)
                for part in parts(sources)
            ]
    finally:
        cv2.setNumThreads(threads)
    for message in dict.fromkeys((unlisted or {}).values()):
        names = ", ".join(name for name, other in (unlisted or {}).items() if other == message)
        reports.append(
            SplitReport(names, "no list", "", 0, problems=[Problem("no_list", names, "", message)])
        )
    used = {name: source.frames for name, source in sources.items() if isinstance(source, FileSource)}
    notes = []
    if "val" in used and "test" in used and (both := shared_images(used["val"], used["test"])):
        notes.append(
            f"val and test share {both:,} images: models are selected on the images that the result is measured on"
        )
    return Report(reports, find_leaks(used, digests), quick, notes)


_Run = Callable[[Iterable[Callable[[], Finding]]], Iterator[Finding]]


def _in_order(
    pool: ThreadPoolExecutor, ahead: int, tasks: Iterable[Callable[[], Finding]]
) -> Iterator[Finding]:
    """Results of tasks in their order; only ``ahead`` of them wait, so memory stays small and Ctrl-C acts soon."""
    waiting: deque[Future[Finding]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check_part(
    part: _Part, run: _Run, quick: bool, advance: Advance, digests: dict[str, bytes]
) -> SplitReport:
    name, frames = ", ".join(part.names), part.frames
    if not frames:
        return _check_samples(name, part.source, run, quick, advance)
    assert isinstance(part.source, FileSource)
    listing = part.source.listing
    report = SplitReport(
        name,
        part.source.title if listing is None else listing.title,
        str(_folder(frames) if listing is None else listing.root),
        len(frames),
        without_truth=sum(frame.depth is None for frame in frames),
        advice="" if listing is None else listing.advice,
    )
    needed = _needed(frames)
    missing = frozenset(missing_files(needed))
    report.files, report.missing = len(needed), len(missing)
    for file, users in needed.items():
        if file in missing:
            shared = "" if len(users) == 1 else f"; {len(users):,} images need it"
            report.problems.append(
                Problem("missing", users[0], str(file), f"{file}: there is no such file{shared}")
            )
    expected = (
        Expected(None, _PLAUSIBLE)
        if listing is None
        else Expected(listing.size, _plausible(listing.depth_range))
    )
    chosen = spread(frames, QUICK) if quick else frames
    seen = _Depths()
    odd: dict[str, list[str]] = {}
    for frame, finding in zip(
        chosen, run(partial(look_at_frame, frame, expected, missing) for frame in chosen), strict=True
    ):
        report.opened += frame.image not in missing
        report.problems += finding.problems
        if finding.digest is not None:
            digests[str(frame.image)] = finding.digest
        seen.add(finding.depth)
        for what, where in finding.notes:
            odd.setdefault(what, []).append(where)
        advance(1)
    report.depth = seen.summary()
    report.notes += [f"{what}: {len(files):,} times, first in {files[0]}" for what, files in odd.items()]
    # Limits say which depths are wanted, not which exist: they tell nothing about the unit.
    decoders = {frame.decode for frame in chosen if frame.depth is not None}
    units = {None if isinstance(decode, Limited) else units_of(decode) for decode in decoders}
    if hint := seen.unit_of_all(expected.depth_range, units.pop() if len(units) == 1 else None):
        report.problems.append(Problem("wrong_unit", name, report.folder, hint))
    report.notes += _twins(frames, digests)
    return report


def _check_samples(name: str, source: Source, run: _Run, quick: bool, advance: Advance) -> SplitReport:
    """Check a source without files, such as synthetic scenes: its samples are made and judged."""
    report = SplitReport(name, source.describe(), "", len(source))
    chosen = spread(range(len(source)), QUICK) if quick else range(len(source))
    expected, seen = Expected(None, (0.0, math.inf)), _Depths()

    def look(index: int) -> Finding:
        return look_at_sample(source[index], expected)

    for finding in run(partial(look, index) for index in chosen):
        report.opened += 1
        report.problems += finding.problems
        seen.add(finding.depth)
        advance(1)
    report.depth = seen.summary()
    return report


class _Depths:
    """The range of the depths of a split."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, 0.0
        self.medians: list[float] = []

    def add(self, spread: Spread | None) -> None:
        """Add an image; None: it has no depth."""
        if spread is not None:
            self.low, self.high = min(self.low, spread.low), max(self.high, spread.high)
            self.medians.append(spread.median)

    def summary(self) -> tuple[float, float, float] | None:
        """Nearest, middle and farthest, metres."""
        return (self.low, statistics.median(self.medians), self.high) if self.medians else None

    def unit_of_all(self, depth_range: tuple[float, float], units: float | None) -> str | None:
        """A message if the unit of the whole split looks wrong, else None."""
        if units is None or len(self.medians) < _ENOUGH:
            return None
        hint = too_near(self.high, depth_range, units)
        if hint is None:
            return None
        return (
            f"no depth beyond {self.high:.3g} m in {len(self.medians):,} images, although this data set reaches "
            f"{depth_range[1]:g} m: depths would be {hint}"
        )


def _needed(frames: Iterable[Frame]) -> dict[Path, list[str]]:
    """Every file of a split with the ids of the frames that need it; many share a camera's file."""
    users: dict[Path, list[str]] = {}
    for frame in frames:
        for file in frame.files:
            users.setdefault(file, []).append(frame.id)
    return users


def _twins(frames: Sequence[Frame], digests: Mapping[str, bytes]) -> list[str]:
    pairs = twins(frames, digests)
    if not pairs:
        return []
    one, other = pairs[0]
    return [f"{len(pairs):,} images are copies of others in the list, first '{other.id}' (of '{one.id}')"]


def _plausible(depth_range: tuple[float, float]) -> tuple[float, float]:
    return _PLAUSIBLE if depth_range == (0.0, math.inf) else depth_range


def _folder(frames: Sequence[Frame]) -> Path:
    return Path(os.path.commonpath([frame.image.parent for frame in frames]))
