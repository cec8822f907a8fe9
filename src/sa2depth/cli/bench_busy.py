"""`sa2depth bench --busy N`: measures the speed of the CPU while other programs use N of its cores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def bench_busy(
    models: Sequence[str],
    what: Sequence[str],
    size: tuple[int, int],
    batch: int,
    seconds: float,
    *,
    busy: int,
    threads: str,
    rounds: int,
    machine: dict[str, str],
    json_file: Path | None,
) -> None:
    """Print a line for each way of waiting and each number of threads, and write the figures if wanted.

    Raises:
        ConfigError: a name is unknown or a number impossible.
    """
    from rich.console import Console

    from sa2depth.bench.busy import WHAT, Setting, compare, thread_numbers
    from sa2depth.errors import ConfigError
    from sa2depth.threads import cpus, usable_cores

    chosen = [name for name in what if name in WHAT]
    if not chosen:
        raise ConfigError(f"--busy times {' and '.join(WHAT)}: name one of them with --what")
    if busy >= usable_cores():
        raise ConfigError(
            f"--busy {busy}: this machine has {usable_cores()} usable cores; leave at least one free"
        )
    numbers = thread_numbers(threads, busy)
    settings = [Setting(m, w, size, batch, n, seconds) for m in models for w in chosen for n in numbers]
    load = Path("/proc/loadavg")
    facts: dict[str, Any] = {
        **machine,
        "cores": f"{usable_cores()} of {len(cpus())} usable",
        "busy": busy,
        "load before": load.read_text().split()[0] if load.exists() else "not known",
    }
    console = Console(soft_wrap=True, highlight=False)
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), style="bold")
    console.print(f"images {batch}x3x{size[0]}x{size[1]}, images/s, medians of {rounds} alternating rounds")
    console.print(f"{'':>4} {'':<10} {'threads':>8} {'waiting':<18} {'quiet':>8} {f'{busy} busy':>8}")
    rows = []
    for figure in compare(settings, busy, rounds):
        name = f"{figure.model:>4} {figure.what:<10} {figure.threads:>8} {figure.waiting:<18}"
        kept = figure.busy / figure.quiet
        console.print(f"{name} {figure.quiet:>8.2f} {figure.busy:>8.2f} {kept:>6.0%}", markup=False)
        rows.append(figure.as_dict())
    if json_file is not None:
        _write(json_file, {**facts, "height": size[0], "width": size[1], "batch": batch, "rows": rows})
        console.print(f"wrote {json_file}", markup=False)


def _write(path: Path, document: dict[str, Any]) -> None:
    import json

    from sa2depth.atomic import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
