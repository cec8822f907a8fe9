"""The processes of one run: those that its options request, and those that a cluster's launcher has started.

``torchrun`` and ``srun`` number the processes that they start, and all children inherit the numbers. The numbers matter
only to a run that requests several processes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, ListConfig

from sa2depth.errors import ConfigError, as_typed

_SLURM_HAND_STARTED = ("bash", "interactive")
"""Names of SLURM jobs in which people start programs by hand; Lightning's rule, too."""


LIGHTNING = "Lightning"
"""The launcher of a process that Lightning, or a script in its place, has started."""


class Started(NamedTuple):
    """The facts that a launcher gives about the processes that it has started.

    Attributes:
        by: The launcher.
        rank: Number of this process, from 0.
        processes: Number of all its processes; 1 if it does not say.
        source: Environment variable that holds this number.
    """

    by: str
    rank: int
    processes: int
    source: str


def started(environment: Mapping[str, str] = os.environ) -> Started | None:
    """The launcher that started this process, according to the environment; None if it was started alone."""
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, count = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
        return Started("torchrun", rank, count, "WORLD_SIZE")
    by_slurm = "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in _SLURM_HAND_STARTED
    slurm = Started(
        "srun",
        _number(environment, "SLURM_PROCID", 0),
        _number(environment, "SLURM_NTASKS", 1),
        "SLURM_NTASKS",
    )
    if by_slurm and slurm.processes > 1:
        return slurm
    if "LOCAL_RANK" in environment:
        rank = _number(environment, "RANK", _number(environment, "LOCAL_RANK", 0))
        return Started(LIGHTNING, rank, _number(environment, "WORLD_SIZE", 1), "WORLD_SIZE")
    if by_slurm:
        return slurm
    if "JSM_NAMESPACE_RANK" in environment:
        rank, count = (_number(environment, f"JSM_NAMESPACE_{name}", 0) for name in ("RANK", "SIZE"))
        return Started("jsrun", rank, max(count, 1), "JSM_NAMESPACE_SIZE")
    return None


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        return otherwise


def device_count(cfg: DictConfig) -> int:
    """Number of processes that a trainer configuration requests on this machine."""
    devices = cfg.trainer.get("devices", 1)
    if devices in (-1, "-1", "auto"):
        on_gpu = cfg.trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        return max(torch.cuda.device_count(), 1) if on_gpu else 1
    if isinstance(devices, str):
        listed = [d for d in devices.split(",") if d.strip()]
        return len(listed) if "," in devices else int(devices) if devices.strip().isdigit() else 1
    if isinstance(devices, int):
        return max(int(devices), 1)
    return len(devices) if isinstance(devices, Sequence) else 1  # Lightning refuses other values


def process_count(cfg: DictConfig) -> int:
    """Number of processes that a run's configuration requests on all its machines."""
    return device_count(cfg) * _nodes(cfg)


def _nodes(cfg: DictConfig) -> int:
    nodes = cfg.trainer.get("num_nodes", 1)
    return nodes if isinstance(nodes, int) else 1


def is_distributed(cfg: DictConfig) -> bool:
    """Whether a run has several processes, or would have them on a machine with more devices."""
    return process_count(cfg) > 1 or cfg.trainer.get("strategy", "auto") not in (None, "auto")


def environment_plugins(cfg: DictConfig, given: Any) -> list[Any]:
    """Lightning's plugins for a run: those of its options, and one if Lightning would misread a launcher's variables.

    A run of one process among several that ``srun`` or ``torchrun`` has started is independent. A SLURM job with one
    task, whose run requests several devices, starts its processes itself.

    Args:
        cfg: the configuration.
        given: value of ``trainer.plugins``, instantiated.
    """
    plugins = [*given] if isinstance(given, list | tuple | ListConfig) else [] if given is None else [given]
    found = started()
    if found is None or _choose_their_own(cfg, plugins):
        return plugins
    alone = not is_distributed(cfg) and found.processes > 1
    # in a SLURM job with one task: the process that starts the others, and the others
    starts_itself = found.by == "srun" and found.processes == 1 and process_count(cfg) > 1
    was_started = found.by == LIGHTNING and "SLURM_NTASKS" in os.environ
    if alone or starts_itself or was_started:
        plugins.append(LightningEnvironment())
    return plugins


def _choose_their_own(cfg: DictConfig, plugins: list[Any]) -> bool:
    strategy = cfg.trainer.get("strategy")
    named = isinstance(strategy, DictConfig) and strategy.get("cluster_environment") is not None
    return named or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)


def check_processes(cfg: DictConfig) -> None:
    """Refuse a run of several processes if a launcher has started another number of them.

    Lightning would only notice after everything is built, wait for processes that nobody starts, or train on a part of
    the data.

    Raises:
        ConfigError: the numbers differ; the message names both.
    """
    found, wanted = started(), process_count(cfg)
    if found is None or found.by == LIGHTNING or not is_distributed(cfg):
        return
    if found.processes == wanted:
        if found.by == "srun" and "SLURM_NTASKS_PER_NODE" not in os.environ and wanted > 1:
            raise ConfigError(
                f"srun has started {found.processes} processes without --ntasks-per-node={device_count(cfg)}, which "
                "tells Lightning how many share a machine: give that to sbatch or srun in place of --ntasks"
            )
        return
    if found.by == "srun" and found.processes == 1 and _nodes(cfg) == 1:
        return
    devices, nodes = cfg.trainer.get("devices", 1), _nodes(cfg)
    there = f", and there {'is' if device_count(cfg) == 1 else 'are'} {device_count(cfg)} here"
    seen = there if devices in (-1, "-1", "auto") else ""
    raise ConfigError(
        f"trainer.devices={as_typed(devices)} and trainer.num_nodes={nodes} ask for {wanted} "
        f"process{'' if wanted == 1 else 'es'}{seen}, but {found.by} has started {found.processes} "
        f"({found.source}): make them equal, or give one device and no strategy (trainer=cpu, trainer=gpu) for "
        "independent runs"
    )


def note_of_independence(cfg: DictConfig) -> str | None:
    """A note for an independent run among several processes, since the user may have meant one common training."""
    found = started()
    if found is None or found.processes < 2 or is_distributed(cfg):
        return None
    who = "another process" if found.by == LIGHTNING else found.by
    return (
        f"process {found.rank} of the {found.processes} that {who} has started runs on its own (one device); "
        "trainer=ddp makes all of them one training"
    )


def requeued_by_slurm(environment: object) -> bool:
    """Whether SLURM queues a job again after it has sent SIGTERM."""
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue
