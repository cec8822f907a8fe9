"""`sa2depth data speed`: measures images per second of the loader, and the time of each stage of one image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sa2depth.cli.data.choose import build_module, compose_data
from sa2depth.errors import ConfigError
from sa2depth.stages import stage
from sa2depth.threads import usable_cores

if TYPE_CHECKING:
    from rich.console import Console

    from sa2depth.data.loading.speed import Rate


def speed(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A file in conf/data, e.g. nyu_sync.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE...]", help="Options of training, e.g. data.train.height=480."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set; by default as configured.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Numbers of loader processes; default: 0, 1, 2, 4 ..."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each number of processes.")] = 10.0,
    augment: Annotated[
        str | None, typer.Option(metavar="NAME", help="A file in conf/augment; default: none.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Time the training loader: images per second for each number of workers, and each stage of one image."""
    from rich.console import Console

    cores = usable_cores()
    tried = _numbers(workers, cores)
    cfg = compose_data(dataset, root, overrides or (), augment)
    console = Console(highlight=False)
    if cfg.data.get("train") is None:
        cfg.data.train = cfg.data.test
        console.print("there is no training split: the test images are used")
    cfg.data.batch_size = batch_size

    with stage("loading PyTorch"):
        from sa2depth.data.loading.dataset import DepthDataset
        from sa2depth.data.loading.speed import loader_rate, recommend, stage_times

    data = build_module(cfg)
    source = data.source("train")
    assert source is not None
    console.print(source.describe(), markup=False)
    console.print(f"augment {augment or 'none'}, batch {batch_size}, {cores} usable cores", markup=False)
    dataset_ = DepthDataset(source, data.augment, data.seed)
    stages = stage_times(dataset_, batch_size, seconds)
    rates = []
    for count in tried:
        with console.status(f"measuring {count} workers"):
            rates.append(loader_rate(data, count, seconds))
    size = tuple(dataset_[0]["image"].shape[1:])
    _print_stages(console, stages, size)
    _print_rates(console, rates)
    best = recommend(rates)
    console.print(
        f"recommended: data.num_workers={best} (the fewest that reach 95 % of the best rate)", markup=False
    )
    if json_file is not None:
        measured = {
            "dataset": dataset,
            "augment": augment,
            "batch_size": batch_size,
            "size": list(size),
            "cores": cores,
            "stage_ms": stages,
            "loader": [_as_dict(rate) for rate in rates],
            "enough_workers": best,
        }
        _write(json_file, measured)
        console.print(f"wrote {json_file}", markup=False)


def _numbers(text: str | None, cores: int) -> list[int]:
    """Numbers of workers to try; by default 0, powers of two, and one for each core."""
    if text is None:
        return sorted({0, cores} | {2**power for power in range(10) if 2**power <= cores})
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise ConfigError(f"--workers must be a list of whole numbers, for example 0,1,4, not '{text}'")
    return numbers


def _print_stages(console: "Console", stages: Mapping[str, float], size: tuple[int, ...]) -> None:
    from rich.table import Table

    total = sum(stages.values())
    table = Table(title=f"one image of {size[0]}x{size[1]} in one process", title_justify="left")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for name, milliseconds in stages.items():
        table.add_row(name, f"{milliseconds:.2f}", f"{milliseconds / total:.0%}")
    table.add_row("all", f"{total:.2f}", f"{1000 / total:.0f} images/s")
    console.print(table)


def _print_rates(console: "Console", rates: Sequence["Rate"]) -> None:
    from rich.table import Table

    table = Table(title="the training loader", title_justify="left")
    for column in ("workers", "images/s", "per worker", "first batch, s", "images timed"):
        table.add_column(column, justify="right")
    for rate in rates:
        table.add_row(
            str(rate.workers),
            f"{rate.per_second:.1f}",
            f"{rate.per_worker:.1f}",
            f"{rate.start_s:.1f}",
            f"{rate.images:,}",
        )
    console.print(table)


def _write(file: Path, measured: Mapping[str, Any]) -> None:
    from sa2depth.atomic import atomic_path

    with atomic_path(file) as path:
        path.write_text(json.dumps(measured, indent=1))


def _as_dict(rate: "Rate") -> dict[str, float]:
    return {
        "workers": rate.workers,
        "images_per_second": rate.per_second,
        "images_per_second_per_worker": rate.per_worker,
        "first_batch_s": rate.start_s,
        "images": rate.images,
        "seconds": rate.seconds,
    }
