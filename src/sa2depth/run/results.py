"""What a run leaves: numbers, tables and pictures, named when it ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.table import Table
from torch.distributed import destroy_process_group, is_available, is_initialized

from sa2depth.data.sample import Source
from sa2depth.lit import DepthModule, close_loggers
from sa2depth.metrics import METRICS, MedianDepthMap, Protocol, aggregate, evaluate_image
from sa2depth.report import depth_grid, plot_curves, write_metrics, write_table
from sa2depth.run.plan import describe_device
from sa2depth.weights import save_model


def finish(
    folder: Path,
    module: DepthModule,
    trainer: L.Trainer,
    *,
    baseline: tuple[Source, Source] | None = None,
    notes: Mapping[str, Any] | None = None,
    keep_model: bool = False,
) -> dict[str, float]:
    """Write the files of an evaluated module and print where they are; ends the process group.

    Args:
        folder: the run's folder.
        module: after ``trainer.test``.
        trainer: the one that tested it.
        baseline: training and test source of the median depth map to compare with, if wanted.
        notes: whatever else belongs into ``metrics.json``.
        keep_model: whether to write ``model.safetensors``.

    Returns:
        Means over the test images, on every process.
    """
    means = aggregate(module.test_table, module.protocol)
    if trainer.is_global_zero:
        baselines = (
            {} if baseline is None else {"median_depth_map": median_baseline(*baseline, module.protocol)}
        )
        details = {"device": describe_device(trainer), "baselines": baselines, **(notes or {})}
        files = [
            write_metrics(
                means, module.test_table, module.protocol, module.frame, folder / "metrics.json", details
            ),
            write_table(module.test_table, folder / "per_image.csv"),
        ]
        if module.examples:
            files.append(_grid(folder / "grid.png", module))
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                curves = Path(logger.log_dir) / "metrics.csv"
                files += [curves, plot_curves(curves, folder / "curves.png")]
        if keep_model:
            files.append(save_model(module.model, folder / "model.safetensors", {"scores": means}))
        files += sorted((folder / "checkpoints").glob("*.ckpt"))
        _print_scores(means, baselines, module.protocol)
        close_loggers(trainer.loggers, [path for path in files if path.suffix == ".png"])
        _print_files(files)
    if is_available() and is_initialized():
        destroy_process_group()
    return means


def median_baseline(train: Source, test: Source, protocol: Protocol) -> dict[str, float]:
    """Scores of the best predictor that looks at no image: the per-pixel median of the training depth maps."""
    predictor = MedianDepthMap(protocol.min_depth, protocol.max_depth).fit(
        train[i].depth for i in range(len(train))
    )
    rows = []
    for index in range(len(test)):
        sample = test[index]
        if sample.depth is not None:
            prediction = predictor.predict(sample.depth.shape)
            rows.append({"id": sample.id, **evaluate_image(prediction, sample.depth, protocol)})
    return aggregate(rows, protocol)


def _grid(path: Path, module: DepthModule) -> Path:
    images, truths, predictions, ids = zip(*module.examples, strict=True)
    return depth_grid(images, truths, predictions, module.protocol.max_depth, path, titles=ids)


def _print_scores(
    means: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], protocol: Protocol
) -> None:
    columns = {"this model": means, **baselines}
    table = Table()
    table.add_column("")
    for title in columns:
        table.add_column(title.replace("_", " "), justify="right")
    for name in METRICS:
        table.add_row(name, *(f"{scores[name]:.4f}" for scores in columns.values()))
    console = Console(soft_wrap=True)
    console.print(f"{protocol.name} v{protocol.version}, {means['images']} images", style="bold")
    console.print(table)


def _print_files(files: list[Path]) -> None:
    console = Console(soft_wrap=True)
    console.print("written:", style="bold")
    for path in files:
        console.print(f"  {path}", highlight=False)
