"""The stages of a command: each has a name, a measured time, and a progress bar or a line if it takes long.

On a terminal the bar is drawn on stderr and removed when its stage ends; elsewhere a stage of more than three seconds
leaves lines. Nothing here imports PyTorch, because importing it is a stage, too.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sa2depth.interrupts import ending_at_ctrl_c

LONG_S = 3.0
"""Seconds after which a stage is named if there is no terminal."""

_BAR_AFTER_S = 0.5  # an earlier bar may only flicker
_AGAIN_S = 60.0  # between two lines of a long stage
START = "start"
"""The stage between the start of the process and the first other stage: Python, imports, configuration."""


class Progress:
    """The progress of a stage; made by `stage`.

    Attributes:
        name: name of the stage.
        total: number of its steps; None if not known.
        done: number of steps so far.
    """

    def __init__(self, name: str, total: int | None, finish: Callable[[], None]) -> None:
        self.name, self.total, self.done = name, total, 0
        self._finish: Callable[[], None] | None = finish

    def end(self) -> None:
        """End the stage; called at the end of its context, or earlier."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()

    def advance(self, steps: int = 1) -> None:
        """Count some more steps as done."""
        self.done += steps

    def __str__(self) -> str:
        count = "" if self.total is None else f" {self.done:,} of {self.total:,},"
        return f"{self.name}:{count}"


class Stages:
    """The seconds of the stages of one run; `stage` adds to it inside its context.

    The seconds of an inner stage do not count for the outer one, so that, with ``rest``, they add up to the total.

    Args:
        since: `time.perf_counter` at the beginning; None: now.
        shown: whether bars and lines appear; only one of several processes should show them.
    """

    def __init__(self, since: float | None = None, *, shown: bool = True) -> None:
        now = time.perf_counter()
        self.shown = shown
        self._thread = threading.get_ident()
        self._since = now if since is None else since
        self._spent: dict[str, float] = {} if since is None else {START: now - since}
        self._open: list[tuple[str, float]] = []
        self._outer: Stages | None = None

    def __enter__(self) -> "Stages":
        global _current
        self._outer, _current = _current, self
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._outer

    def begin(self, name: str) -> int:
        """Begin a stage, while the one around it pauses; returns its level, for `end`."""
        now = time.perf_counter()
        self._credit(now)
        self._spent.setdefault(name, 0.0)  # keeps the order in which stages began
        self._open.append((name, now))
        return len(self._open) - 1

    def end(self, level: int) -> None:
        """End a stage and those that began inside it."""
        now = time.perf_counter()
        self._credit(now)
        del self._open[level:]
        if self._open:
            self._open[-1] = self._open[-1][0], now

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far in the order in which they began, then ``rest`` (between them) and ``total``."""
        now = time.perf_counter()
        spent = dict(self._spent)
        if self._open:
            name, since = self._open[-1]
            spent[name] = spent.get(name, 0.0) + now - since
        total = now - self._since
        rows = {**spent, "rest": max(0.0, total - sum(spent.values())), "total": total}
        return {name: round(seconds, 2) for name, seconds in rows.items()}

    def _credit(self, now: float) -> None:
        if self._open:
            name, since = self._open[-1]
            self._spent[name] = self._spent.get(name, 0.0) + now - since

    def belongs_here(self) -> bool:
        """Whether the current thread is the one whose time is counted."""
        return threading.get_ident() == self._thread


_current: Stages | None = None
_command_since: float | None = None
_displays: list["_Display"] = []
_terminal = threading.Lock()  # held by the bar that is drawn
_other_bars = 0  # running stages that show a bar of their own
_IMPORTED = time.perf_counter()


@contextmanager
def stage(name: str, total: int | None = None, *, shown: bool = True) -> Iterator[Progress]:
    """Run one stage: show its name while it lasts, and add its seconds to the `Stages` of the run, if there is one.

    Args:
        name: name for people.
        total: number of its steps, for `Progress.advance`; None: not known.
        shown: False if something else already shows a bar.
    """
    global _other_bars
    record = _current if _current is not None and _current.belongs_here() else None
    level = 0 if record is None else record.begin(name)

    def finish() -> None:
        global _other_bars
        _other_bars -= not shown
        if display is not None:
            display.stop()
        if record is not None:
            record.end(level)

    progress = Progress(name, total, finish)
    visible = shown and (_current is None or _current.shown)
    display = _Display(progress, lines=_other_bars > 0) if visible else None
    _other_bars += not shown
    try:
        yield progress
    finally:
        progress.end()


@contextmanager
def loading(what: str, *, command: bool) -> Iterator[None]:
    """A stage for imports that take seconds, at the head of a program.

    Args:
        what: names the imported libraries.
        command: whether the module is the program that was started (``__name__ == "__main__"``); if not, nothing is
            shown or counted.

    Raises:
        SystemExit: Ctrl-C ends the program.
    """
    global _command_since
    if not command:
        yield
        return
    _command_since = _process_start()
    first = all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK"))
    with ending_at_ctrl_c(shown=first), stage(f"loading {what}", shown=first):
        # Modules stay until the end: searching millions of their objects for garbage, again and again while they are
        # loaded and once more when Python ends, takes seconds.
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            if collecting:
                gc.enable()


def run_stages(*, shown: bool = True) -> Stages:
    """The `Stages` of a run, from the start of the process if this is the first run of one of our programs."""
    global _command_since
    since, _command_since = _command_since, None
    return Stages(since, shown=shown)


def seconds_so_far() -> dict[str, float]:
    """`Stages.seconds` of the current run; empty if there is none."""
    return {} if _current is None else _current.seconds()


def tell(seconds: Mapping[str, float]) -> str:
    """Seconds by stage in one line, without those below a tenth of a second."""
    parts = [f"{name} {value:.1f} s" for name, value in seconds.items() if name != "total" and value >= 0.1]
    total = f"total {seconds['total']:.1f} s"
    return f"{', '.join(parts)}; {total}" if parts else total


def _process_start() -> float:
    """`time.perf_counter` when this process began, or, if the system does not tell, when this module was imported."""
    try:
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        age = uptime - started / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    start = time.perf_counter() - age
    # some containers show another clock than this system's
    return start if 0 <= _IMPORTED - start < 300 else _IMPORTED


class _Display:
    """A bar on a terminal, lines elsewhere, drawn by a thread that waits first."""

    def __init__(self, progress: Progress, *, lines: bool) -> None:
        self._progress = progress
        self._stream: TextIO = sys.stderr
        self._bars = not lines and self._stream.isatty()
        self._began = time.perf_counter()
        self._over = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._run, name=f"stage {progress.name}", daemon=True)
        _displays.append(self)
        self._thread.start()

    def stop(self) -> None:
        """End the display."""
        self._over.set()
        self._thread.join()
        _displays.remove(self)
        seconds = time.perf_counter() - self._began
        if not self._bars and (self._told or seconds > LONG_S):
            self._write(f"{self._progress.name}: {seconds:.1f} s")

    def _run(self) -> None:
        if self._bars:
            if not self._over.wait(_BAR_AFTER_S):
                self._bar()
            return
        wait = LONG_S
        while not self._over.wait(wait):
            self._told, wait = True, _AGAIN_S
            self._write(f"{self._progress} {time.perf_counter() - self._began:.0f} s so far")

    def _bar(self) -> None:
        progress, drawn = self._progress, False
        bar = _rich_bar(self._stream, counted=progress.total is not None)
        task = bar.add_task(progress.name, total=progress.total)
        while not self._over.wait(0.1):
            bar.update(task, completed=progress.done)
            on_top = _displays[-1:] == [self]  # an inner stage uses the terminal while it lasts
            if on_top and not drawn and _terminal.acquire(blocking=False):  # fails while another bar is drawn
                bar.start()
                drawn = True
            elif drawn and not on_top:
                bar.stop()
                _terminal.release()
                drawn = False
        if drawn:
            bar.stop()
            _terminal.release()

    def _write(self, line: str) -> None:
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # a pipe that nobody reads or a closed stream is no reason to fail
            self._over.set()


def _rich_bar(stream: TextIO, *, counted: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if counted:
        columns += [MofNCompleteColumn(), TimeRemainingColumn()]
    console = Console(file=stream)
    return RichProgress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    )
