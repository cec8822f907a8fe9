"""The plan of a run, printed before it starts."""

from collections.abc import Mapping

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from sa2depth.data import DepthDataModule
from sa2depth.metrics import Protocol
from sa2depth.run.summary import protocol_rows
from sa2depth.runtime.checkpointing import PARTS
from sa2depth.scenes import SyntheticScenes


def count_parameters(model: nn.Module) -> str:
    """Number of parameters of a network, in total and in the encoder."""
    total = sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for p in getattr(model, "encoder", nn.Module()).parameters())
    return f"{total:,} ({encoder:,} in the encoder)"


def describe_device(trainer: L.Trainer) -> str:
    """Accelerator, number of processes and precision in one line, for the plan."""
    told = device_facts(trainer)
    return f"{told['device']}, precision {told['precision']}"


def device_facts(trainer: L.Trainer) -> dict[str, str]:
    """``device``, with the number of processes if there are several, and ``precision``, with that of CUDA products."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    processes = f"{trainer.world_size} processes on " if trainer.world_size > 1 else ""
    products = torch.get_float32_matmul_precision()
    rounded = "" if products == "highest" or device.type != "cuda" else f", float32 products {products}"
    return {"device": f"{processes}{name}", "precision": f"{trainer.precision}{rounded}"}


def note_of_protocol(protocol: Protocol, data: DepthDataModule) -> dict[str, str]:
    """A row of the plan if the default rules, which are for generated scenes, are applied to other images."""
    source = data.source("test")
    if protocol.name != "synthetic" or source is None or isinstance(source, SyntheticScenes):
        return {}
    return {
        "note": "protocol=synthetic is for generated scenes: choose the data set's own, or protocol=custom"
    }


def describe_ways(cfg: DictConfig, model: nn.Module) -> dict[str, str]:
    """A row of the plan about the computation of a step, if the user chose anything about it."""
    again = [part for part in PARTS if getattr(getattr(model, part, None), "gradient_checkpointing", False)]
    chosen = {
        "operators": cfg.ops,
        "float32 products": None
        if cfg.float32_matmul_precision == "highest"
        else cfg.float32_matmul_precision,
        "compile": None if cfg.compile == "auto" else str(cfg.compile).lower(),
        "CUDA graphs": None if cfg.cuda_graph == "auto" else str(cfg.cuda_graph).lower(),
        "gradient checkpointing": ", ".join(again) or None,
    }
    told = "; ".join(f"{name}: {value}" for name, value in chosen.items() if value is not None)
    return {"a step": told} if told else {}


@rank_zero_only
def print_plan(
    title: str,
    cfg: DictConfig,
    data: DepthDataModule,
    protocol: Protocol,
    rows: Mapping[str, str],
    multiple: int | None = None,
) -> None:
    """Print the plan as a table: the data, ``rows``, the rules, the folder.

    The network's input is padded to multiples of ``multiple``; None means that predictions come from files.
    """
    rules = (
        protocol_rows(protocol, network=False)
        if multiple is None
        else protocol_rows(protocol, multiple=multiple)
    )
    rows = {
        "data": data.describe(),
        **rows,
        **rules,
        **note_of_protocol(protocol, data),
        "output": str(cfg.paths.output_dir),
    }
    table = Table(title=title, title_justify="left", show_header=False, title_style="bold")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
