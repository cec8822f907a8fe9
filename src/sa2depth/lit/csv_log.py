"""``metrics.csv`` of a run, which survives an interruption, a full disk and a second start in the same folder."""

import csv
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from sa2depth.atomic import atomic_path, keep_numbered

_LOG = logging.getLogger(__name__)


class CsvLog(CSVLogger):
    """Lightning's CSV logger, but it neither deletes the file of an earlier run nor ends the run on a full disk.

    Its arguments are those of ``CSVLogger``. A fresh run renames an earlier file of its folder to a numbered name.
    """

    @property
    def experiment(self) -> "CsvWriter":
        """The writer; outside the first process it does nothing."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = CsvWriter(self.log_dir)
        return cast("CsvWriter", super().experiment)

    @rank_zero_only
    def go_on_from(self, earlier: Path, step: int) -> None:
        """Begin with the rows of an interrupted run; must be called before anything else is logged.

        Rows of later steps are left out, because the run repeats those steps.

        Args:
            earlier: ``metrics.csv`` of that run, perhaps the file of this one; it may be missing.
            step: number of the first step that this run does.
        """
        own = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        rows = list(_rows(earlier))
        kept = [row for row in rows if _is_before(row, step)]
        same = earlier.exists() and own.exists() and earlier.samefile(own)
        if own.exists() and not (same and len(kept) == len(rows)):
            keep_numbered(own)
        if kept:
            _write(own, list(rows[0]), kept)
        self._experiment = CsvWriter(self.log_dir, goes_on=True)

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Write the waiting rows, so that the file reaches as far as the checkpoint."""
        self.save()


class CsvWriter(ExperimentWriter):
    """Appends rows under the names of all columns so far; if the disk is full, they wait for the next call.

    Args:
        log_dir: folder of ``metrics.csv``.
        goes_on: whether the rows of an existing file belong to this run.
    """

    def __init__(self, log_dir: str, goes_on: bool = False) -> None:
        self._goes_on, self._complained = goes_on, False
        super().__init__(log_dir)
        self._file = Path(self.metrics_file_path)
        self.metrics_keys = _names(self._file)

    def _check_log_dir_exists(self) -> None:
        if not self._goes_on and (kept := keep_numbered(Path(self.metrics_file_path))):
            _LOG.warning("this folder already holds a run: its metrics.csv was renamed to %s", kept.name)

    def save(self) -> None:
        """Write the waiting rows."""
        if not self.metrics:
            return
        names = sorted({*self.metrics_keys, *(name for row in self.metrics for name in row)})
        try:
            if names == self.metrics_keys and self._file.exists():
                self._append(names)
            else:
                _write(self._file, names, [*_rows(self._file), *self.metrics])
        except OSError as error:
            if not self._complained:
                _LOG.warning("%s cannot be written (%s): its rows wait in memory", self._file, error.strerror)
            self._complained = True
            return
        self.metrics_keys, self.metrics, self._complained = names, [], False

    def _append(self, names: list[str]) -> None:
        size = self._file.stat().st_size
        try:
            with self._file.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, names).writerows(self.metrics)
        except OSError:
            os.truncate(self._file, size)  # drop a half-written row
            raise


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                row.pop(None, None)  # a damaged line has more cells than names
                yield row


def _names(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file).fieldnames or [])


def _write(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _is_before(row: Mapping[str, Any], step: int) -> bool:
    try:
        own = int(float(row["step"]))
    except (KeyError, TypeError, ValueError):
        return False
    # scores of test images are logged after the last step, under its number
    return own < step or (
        own == step and any(value for name, value in row.items() if name.startswith("test/"))
    )
