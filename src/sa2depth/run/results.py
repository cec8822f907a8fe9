"""Write the results of a run (numbers, tables and pictures) and print their names at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn
from torch.distributed import barrier, destroy_process_group, is_available, is_initialized

from sa2depth.data.sample import Source
from sa2depth.lit import close_loggers
from sa2depth.metrics import Evaluation, Examples
from sa2depth.report import plot_curves, write_by_depth, write_metrics, write_table
from sa2depth.report.page import refresh_page
from sa2depth.run.baseline import median_baseline
from sa2depth.run.pictures import FOLDER, write_grid, write_pictures
from sa2depth.run.processes import each_on_its_own
from sa2depth.run.summary import print_files, print_summary
from sa2depth.stages import seconds_so_far, stage
from sa2depth.threads import few_threads
from sa2depth.weights import save_model


def finish(
    folder: Path,
    evaluation: Evaluation,
    examples: Examples,
    circumstances: Mapping[str, str],
    *,
    trainer: L.Trainer | None = None,
    baseline: tuple[Source, Source] | None = None,
    notes: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
) -> dict[str, float]:
    """Write the files of an evaluation, print the scores and the names of the files, and end the process group.

    It must be called on every process.

    Args:
        folder: the run's folder, on a disk that all processes share; that of the first process counts.
        evaluation: the measurements, the same on every process.
        examples: candidates for the pictures on this process.
        circumstances: device, precision and checkpoint, which are printed and written into ``metrics.json``.
        trainer: the trainer that ran the test, with its loggers; None if there was none.
        baseline: training and test source of the median depth map to compare with, if wanted.
        notes: further entries of ``metrics.json``.
        model: the network to write as ``model.safetensors``.

    Returns:
        Means over the test images, on every process.

    Raises:
        DataError: no image was evaluated, or none has a scored pixel.
    """
    means = evaluation.means
    is_writer = trainer is None or trainer.is_global_zero
    if trainer is not None:
        folder = Path(trainer.strategy.broadcast(str(folder)))
    details: dict[str, Any] = {"pictures": [], "baselines": {}, **circumstances, **(notes or {})}
    files: list[Path] = []
    loggers = [] if trainer is None else trainer.loggers
    if is_writer:  # written first, because later files may fill the disk
        with stage("tables"):
            files = [
                write_metrics(evaluation, folder / "metrics.json", details),
                write_table(evaluation, folder / "per_image.csv"),
                write_by_depth(evaluation, folder / "by_depth.csv"),
            ]
            if model is not None:
                files.append(save_model(model, folder / "model.safetensors", {"scores": means}))
    with stage("pictures", 3 * examples.count + 1) as progress, few_threads(1):
        details["pictures"] = write_pictures(folder, evaluation, examples, progress)
        grid = write_grid(folder / "grid.png", evaluation, examples, is_writer)
        curves = [plot_curves(log, folder / "curves.png") for log in _logs(loggers)] if is_writer else []
    if is_available() and is_initialized():
        barrier()  # the pictures of all processes must exist before the first process names them
        each_on_its_own()
    if is_writer:
        if baseline is not None:
            details["baselines"] = {"median_depth_map": median_baseline(*baseline, evaluation.protocol)}
        if seconds := seconds_so_far():
            details["stages_s"] = seconds
        write_metrics(evaluation, folder / "metrics.json", details)
        images = [*([grid] if grid else []), *curves]
        files += [*_logs(loggers), *images, folder / FOLDER, *sorted((folder / "checkpoints").glob("*.ckpt"))]
        if page := refresh_page(folder):
            files.append(page)
        print_summary(evaluation, circumstances, details["baselines"], seconds)
        with stage("closing the loggers"):
            close_loggers(loggers, images)
        print_files(files)
    if is_available() and is_initialized():
        destroy_process_group()
    return means


def _logs(loggers: Sequence[Logger]) -> list[Path]:
    return [Path(logger.log_dir) / "metrics.csv" for logger in loggers if isinstance(logger, CSVLogger)]
