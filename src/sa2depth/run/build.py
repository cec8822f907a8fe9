"""Build the objects of a run from a composed configuration."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import DictConfig, OmegaConf

from sa2depth.config import check_config
from sa2depth.config.cluster import check_processes, environment_plugins, process_count
from sa2depth.data import DepthDataModule
from sa2depth.errors import ConfigError
from sa2depth.lit import SyncBatchNorms, WholeCheckpoints
from sa2depth.lit.callbacks import of_every_run
from sa2depth.metrics import Protocol
from sa2depth.models import SA2Depth, build_model
from sa2depth.ops import use_backend
from sa2depth.ops.precision import float32_products
from sa2depth.run.processes import EndAtSigterm
from sa2depth.run.stage_times import ValidationStage, is_first
from sa2depth.stages import Progress, run_stages, stage


def quiet_lightning() -> None:
    """Silence Lightning's messages about every run: the printed plan says the same, and some are advertising."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "Experiment logs directory",  # the run folder is ours and already holds the configuration
        "The number of training batches",
        "The '.*_dataloader' does not have many workers",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "It is recommended to use `self.log",  # with sync_dist=True; our metrics have already gathered
        # Lightning builds DistributedDataParallel on a stream of its own
        "The AccumulateGrad node's stream does not match",
        "Grad strides do not match bucket view strides",  # 1x1 convolutions in channels-last: the order is the same
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")


@contextmanager
def prepared(cfg: DictConfig, known: dict[str, Any]) -> Iterator[Progress]:
    """Prepare a run: check its configuration, seed every random generator, and set the chosen arithmetic.

    Args:
        cfg: the whole configuration.
        known: the program's options, see `sa2depth.config.options`.

    Yields:
        The stage in which everything is built; the run ends it.

    Raises:
        ConfigError: an option is unknown or missing, a multirun uses several devices, a launcher has started another
            number of processes than the trainer needs, or a back end of the operators or a precision does not exist.
    """
    with run_stages(shown=is_first()), stage("set-up") as set_up:
        quiet_lightning()
        check_config(cfg, known)
        _refuse_parallel_multirun(cfg)
        check_processes(cfg)
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        operators = nullcontext() if cfg.ops is None else use_backend(cfg.ops)
        with operators, float32_products(cfg.float32_matmul_precision):
            yield set_up


def build_network(cfg: DictConfig) -> SA2Depth:
    """The network of ``cfg.model`` with its spec; its classes are trusted because the command line composed them."""
    return build_model(cast(dict[str, Any], OmegaConf.to_container(cfg.model, resolve=True)), trusted=None)


def build_data(cfg: DictConfig, protocol: Protocol, *stages: str) -> DepthDataModule:
    """Set up the data module, so that missing files are found before anything else starts.

    Args:
        cfg: the whole configuration.
        protocol: gives the number of test images, and of those without ground truth.
        stages: ``fit``, ``test`` or both.

    Raises:
        DataError: files are missing, there is no test image, or their number is not that of the protocol.
    """
    data: DepthDataModule = instantiate(cfg.data)
    for part in stages:
        data.setup(part)
    protocol.check_images(data.counts("test").get("test", 0), without_truth(data))
    return data


def check_input(protocol: Protocol, multiple: int, data: DepthDataModule, *splits: str) -> None:
    """Refuse a network that cannot take the protocol's images, before hours of training end in that message.

    Args:
        protocol: says what the network sees.
        multiple: ``stride_multiple`` of the network.
        data: gives the size of the first image of each split, if the protocol shows whole images unchanged.
        splits: ``val``, ``test`` or both.

    Raises:
        ShapeError: the network cannot take a size; the message names protocol, size and multiple.
    """
    protocol.check_multiple(multiple)
    for split in splits:
        source = data.source(split)
        if protocol.input == "as_is" and protocol.frame is None and source is not None and len(source):
            height, width = source[0].image.shape[:2]
            protocol.check_multiple(multiple, (height, width))


def without_truth(data: DepthDataModule) -> int:
    """Number of test images that were left out because they have no ground truth."""
    return int(getattr(data.source("test"), "without_truth", 0))


def build_trainer(cfg: DictConfig, with_logs: bool = True) -> L.Trainer:
    """Lightning's trainer, with the configured callbacks and loggers unless ``with_logs`` is False."""
    node: DictConfig = cfg.trainer.copy()
    OmegaConf.set_struct(node, False)
    if node.get("accelerator") in ("gpu", "cuda") and not CUDAAccelerator.is_available():
        raise ConfigError(
            f"trainer.accelerator={node.accelerator}: PyTorch sees no CUDA device here; use "
            "trainer=cpu, or trainer=auto, which uses a GPU if there is one"
        )
    options: dict[str, Any] = {}
    given = instantiate(node.pop("plugins", None))
    plugins = environment_plugins(cfg, given)
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    if node.get("sync_batchnorm"):
        plugins.append(SyncBatchNorms())
    options["plugins"] = plugins
    if with_logs:
        for kind in ("callbacks", "logger"):
            options[kind] = [instantiate(each) for each in (cfg.get(kind) or {}).values() if each is not None]
    else:
        options = {**options, "callbacks": [], "logger": False, "enable_checkpointing": False}
    options["callbacks"] += [EndAtSigterm(), ValidationStage()]
    options["callbacks"] += of_every_run(cfg.get("compile", False), cfg.get("cuda_graph", False))
    return cast(L.Trainer, instantiate(node, **options))


def _refuse_parallel_multirun(cfg: DictConfig) -> None:
    in_multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if in_multirun and (count := process_count(cfg)) > 1:
        raise ConfigError(
            f"--multirun with {count} devices per job is refused: each child process of a job would start the whole "
            "sweep again, and the next job would inherit this one's rank and silently train on a part of the data. "
            "Run the jobs one by one, or with one device each: trainer=gpu or trainer=cpu."
        )
