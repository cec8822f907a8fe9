"""`sa2depth bench`: speed and memory of operators, parts and networks on the torch path and the fast path."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.bench_agreement import agreement
from sa2depth.cli.bench_busy import bench_busy
from sa2depth.cli.inputs import parse_size
from sa2depth.cli.options import Device
from sa2depth.errors import ConfigError
from sa2depth.stages import stage

if TYPE_CHECKING:
    from sa2depth.bench.run import Row


def bench(
    models: Annotated[str, typer.Option(help="Networks: any of nano, t, s, l.")] = "t",
    what: Annotated[
        str,
        typer.Option(
            help="Any of operators, parts, inference, training, evaluation (baseline and pictures), or agreement alone."
        ),
    ] = "operators,parts,inference,training",
    size: Annotated[str, typer.Option(metavar="HxW", help="Image size, multiples of 32.")] = "480x640",
    batch: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1,
    precision: Annotated[
        str, typer.Option(help="Any of fp32, tf32 (for float32 products), bf16, fp16.")
    ] = "fp32",
    backends: Annotated[
        str,
        typer.Option(
            help="Back ends, with +prepared, +compile, +graph if wanted; all are compared with the first."
        ),
    ] = "torch,auto",
    device: Device = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for each figure, at least three calls.")
    ] = 1.0,
    busy: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Time training and inference on the CPU with and without this many other programs that each use a "
            "core, for several numbers of threads and ways of waiting.",
        ),
    ] = None,
    threads: Annotated[
        str, typer.Option(help="With --busy: numbers, all, rest (cores not busy), free (by the load).")
    ] = "all,rest,free",
    rounds: Annotated[int, typer.Option(min=1, help="With --busy: measurements of each figure.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", "-c", metavar="FILE", help="For agreement: weights of a trained network."
        ),
    ] = None,
    images: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="For agreement: a folder, a pattern, or streets, rooms, mixed (generated)."
        ),
    ] = "generated",
    count: Annotated[int, typer.Option(min=1, help="For agreement: at most this many images.")] = 16,
    only: Annotated[
        str, typer.Option(metavar="WORDS", help="For agreement: only runs with these words in their names.")
    ] = "",
) -> None:
    """Time operators, parts and whole networks on the torch path and on the fast path.

    With --what agreement: measure how much the ways to run a trained network differ.
    """
    from rich.console import Console

    with stage("loading PyTorch"):
        from sa2depth.bench.run import OUT_OF_MEMORY, Settings, run
        from sa2depth.infer.predictor import pick_device

    if "agreement" in _names(what):
        if len(_names(what)) > 1:
            raise ConfigError(
                f"--what {what}: agreement cannot be combined with others; name it alone, with a --checkpoint"
            )
        machine = _machine(pick_device(device))
        agreement(checkpoint, images, count, size, device, only, json_file, machine)
        return
    settings = Settings(
        device=pick_device(device),
        models=_names(models),
        what=_names(what),
        size=parse_size(size) or (480, 640),
        batch=batch,
        precisions=_names(precision),
        backends=_names(backends),
        budget_s=seconds,
    )
    machine = _machine(settings.device)
    if busy is not None:
        bench_busy(
            *(settings.models, settings.what, settings.size, batch, seconds),
            busy=busy,
            threads=threads,
            rounds=rounds,
            machine=_machine(pick_device("cpu")),
            json_file=json_file,
        )
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), style="bold")
    console.print(f"images {batch}x3x{settings.size[0]}x{settings.size[1]}, medians")
    rows: list[Row] = []
    try:
        for row in run(settings):
            console.print(_line(row))
            rows.append(row)
    finally:  # if it is stopped, write what has been measured
        if json_file is not None:
            _write(json_file, machine, settings.size, batch, rows)
            console.print(f"wrote {json_file}")
    if failed := sum(row.median_ms is None and row.note != OUT_OF_MEMORY for row in rows):
        console.print(f"{failed} of {len(rows)} could not be measured; each line says why")
        raise typer.Exit(1)


def _line(row: "Row") -> str:
    name = f"{row.model:>4} {row.precision} {row.subject:<68} {row.backend:>27}"
    if row.median_ms is None:
        return f"{name}  {row.note}"
    memory = "" if row.peak_mib is None else f"{row.peak_mib:>9.0f} MiB"
    faster = "" if row.speedup is None else f"{row.speedup:>7.1f}x"
    return f"{name} {row.median_ms:>10.3f} ms{memory}{faster}"


def _machine(device: "object") -> dict[str, str]:
    import platform

    import torch

    from sa2depth.version import __version__

    on_cuda = getattr(device, "type", "") == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else f"CPU, {torch.get_num_threads()} threads"  # type: ignore[arg-type]
    return {
        "device": name,
        "torch": str(torch.__version__),
        "sa2depth": __version__,
        "python": platform.python_version(),
    }


def _write(path: Path, machine: dict[str, str], size: tuple[int, int], batch: int, rows: list["Row"]) -> None:
    import json

    from sa2depth.atomic import atomic_path

    document = {**machine, "height": size[0], "width": size[1], "batch": batch}
    document_rows = {**document, "rows": [row.as_dict() for row in rows]}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document_rows, indent=1) + "\n", encoding="utf-8")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
