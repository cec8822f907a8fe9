"""Failing jobs of a sweep: each is reported at once, the other jobs run, and the end lists all failures."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import RunMode
from omegaconf import DictConfig

from sa2depth.quoting import argument


class Failure(NamedTuple):
    """A job that failed.

    Attributes:
        job: Number of the job.
        overrides: Overrides of this job.
        folder: Output folder of the job.
        message: The error in one line.
        of_user: Whether the user can fix it.
    """

    job: int
    overrides: str
    folder: str
    message: str
    of_user: bool


class Sweep:
    """A job that Hydra may run several times; in a sweep a failure does not stop the other runs.

    Args:
        job: The function to run.
        explain: Returns the message for an error that the user can fix, None for any other.
    """

    def __init__(self, job: Callable[[DictConfig], Any], explain: Callable[[Exception], str | None]) -> None:
        self._job, self._explain = job, explain
        self.failures: list[Failure] = []
        self.jobs = 0

    def task(self) -> Callable[[DictConfig], Any]:
        """The function to give to Hydra."""

        @functools.wraps(self._job)
        def run(cfg: DictConfig) -> Any:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                return self._job(cfg)
            self.jobs += 1
            try:
                return self._job(cfg)
            except Exception as error:
                self._note(error)
                # a sweeper that searches for the best value handles failing jobs itself
                if not HydraConfig.get().sweeper._target_.endswith(".BasicSweeper"):
                    raise
                return None

        return run

    def _note(self, error: Exception) -> None:
        message = self._explain(error)
        if message is None:
            traceback.print_exception(error)
        hydra = HydraConfig.get()
        failure = Failure(
            int(hydra.job.num),
            " ".join(argument(text) for text in filter_overrides(hydra.overrides.task)),
            str(hydra.runtime.output_dir),
            _line(message or f"{type(error).__name__}: {error}"),
            message is not None,
        )
        self.failures.append(failure)
        sys.stderr.write(f"error: job {failure.job} failed ({failure.overrides}): {failure.message}\n")

    def report(self) -> int:
        """List the failed jobs, if there are any.

        Returns:
            0 if no job failed; 2 if the user can fix every failure; else 1.
        """
        if not self.failures:
            return 0
        sys.stderr.write(f"error: {len(self.failures)} of {self.jobs} jobs failed:\n")
        for job, overrides, folder, message, _ in self.failures:
            sys.stderr.write(f"  {job}  {overrides}\n     {message}\n     {folder}\n")
        return 2 if all(failure.of_user for failure in self.failures) else 1


def _line(text: str) -> str:
    return " ".join(text.split())
