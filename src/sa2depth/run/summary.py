"""The summary that a run prints at its end: circumstances, scores and the worst images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sa2depth.metrics import Evaluation, Protocol
from sa2depth.metrics.any_size import by
from sa2depth.metrics.examples import choose
from sa2depth.report.tables import NOT_APPLICABLE
from sa2depth.stages import tell

_RULES = ("depth", "frame", "input", "crop", "flip averaging")
_NETWORK_RULES = ("input", "flip averaging")
_SIZES_SHOWN = 6
_WORST_SHOWN = 3


def protocol_rows(protocol: Protocol, network: bool = True, multiple: int = 32) -> dict[str, str]:
    """The rules of an evaluation, for the plan and the summary.

    Args:
        protocol: the rules.
        network: False if predictions come from files.
        multiple: the network's input is padded to multiples of this many pixels.
    """
    told = dict(line.split(": ", 1) for line in protocol.describe(multiple=multiple))
    rows = {name: told[name] for name in ("protocol", *_RULES)}
    return rows if network else rows | dict.fromkeys(_NETWORK_RULES, NOT_APPLICABLE)


def print_summary(
    evaluation: Evaluation,
    circumstances: Mapping[str, str],
    baselines: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Print circumstances and seconds, scores next to those of baselines, errors by depth, and the worst images."""
    console = Console(soft_wrap=True, highlight=False)
    protocol = evaluation.protocol
    console.print(f"{protocol.name} v{protocol.version}, {evaluation.means['images']} images", style="bold")
    spent = {"time": tell(seconds)} if seconds else {}
    console.print(_facts({**_counted(evaluation), **_measured(evaluation), **circumstances, **spent}))
    console.print(_scores(evaluation, baselines))
    for name, scores in baselines.items():
        if "not_run" in scores:
            console.print(f"{name.replace('_', ' ')}: not run: {scores['not_run']}")
    if evaluation.by_depth:
        console.print(_by_depth(evaluation.by_depth))
    console.print("worst images:", style="bold")
    for row in choose(evaluation.table, _WORST_SHOWN, 0)["worst"]:
        console.print(f"  {row['id']}  abs_rel {row['abs_rel']:.4f}", markup=False)


def print_files(files: Sequence[Path]) -> None:
    """Print the names of the written files; a folder of pictures takes one line."""
    console = Console(soft_wrap=True, highlight=False)
    console.print("written:", style="bold")
    for path in files:
        console.print(f"  {path}", markup=False)


def _counted(evaluation: Evaluation) -> dict[str, str]:
    means = evaluation.means
    rows = {
        "images": f"{evaluation.images:,} evaluated",
        "without truth": f"{evaluation.without_truth:,}",
        "empty masks": f"{means['empty_images']:,}",
        "non-finite": f"{means['nonfinite_pixels']:,} pixels in {means['nonfinite_images']:,} images",
    }
    if not evaluation.complete:
        expected = evaluation.protocol.expected_images or evaluation.split_images
        rows["images"] += f", NOT THE WHOLE SPLIT of {expected:,}"
    return rows


def _measured(evaluation: Evaluation) -> dict[str, str]:
    told = protocol_rows(evaluation.protocol, evaluation.network, evaluation.multiple)
    rows = {name: told[name] for name in _RULES}
    crops = [
        "{} images of {}: rows {}-{}, columns {}-{}".format(
            f"{count:,}", by(size), top, bottom - 1, left, right - 1
        )
        for size, count in evaluation.frames.items()
        for top, bottom, left, right in [evaluation.protocol.crop_box(*size)]
    ]
    rows["scored"] = _few(crops)
    if evaluation.natives != evaluation.frames:
        rows["image sizes"] = _few([f"{n:,} of {by(size)}" for size, n in evaluation.natives.items()])
    if evaluation.network:
        rows["input sizes"] = _few([f"{n:,} of {by(size)}" for size, n in evaluation.inputs.items()])
    return rows


def _facts(rows: Mapping[str, str]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, words in rows.items():
        table.add_row(name, words)
    return table


def _scores(evaluation: Evaluation, baselines: Mapping[str, Mapping[str, Any]]) -> Table:
    shown = {name: scores for name, scores in baselines.items() if "not_run" not in scores}
    columns = {"this model" if evaluation.network else "these predictions": evaluation.means, **shown}
    table = Table()
    table.add_column("")
    for title in columns:
        table.add_column(title.replace("_", " "), justify="right")
    for name in evaluation.protocol.metrics:
        table.add_row(name, *(f"{scores[name]:.4f}" for scores in columns.values()))
    return table


def _by_depth(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="by true depth, pooled over pixels", title_justify="left")
    for title in ("metres", "pixels", "abs_rel", "rmse", "d1", "bias (m)"):
        table.add_column(title, justify="right")
    for row in rows:
        errors = [f"{row[key]:.4f}" for key in ("abs_rel", "rmse", "d1")] if row["pixels"] else ["-"] * 3
        bias = f"{row['bias']:+.4f}" if row["pixels"] else "-"
        table.add_row(f"{row['from']:g}-{row['to']:g}", f"{row['pixels']:,}", *errors, bias)
    return table


def _few(lines: Sequence[str]) -> str:
    more = (
        [f"and {len(lines) - _SIZES_SHOWN} more sizes, see metrics.json"] if len(lines) > _SIZES_SHOWN else []
    )
    return "\n".join([*lines[:_SIZES_SHOWN], *more])
