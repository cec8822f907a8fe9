"""From a composed configuration to the objects of a run."""

from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sa2depth.config import check_config
from sa2depth.errors import ConfigError
from sa2depth.metrics import Protocol, load_protocol
from sa2depth.models import SA2Depth, build_model

PATHS = ("data_dir", "runs_dir", "output_dir")
SHARED_KEYS: dict[str, Any] = dict.fromkeys(
    ("augment", "data", "protocol", "trainer", "name", "seed")
) | {"paths": PATHS}
TRAIN_KEYS = SHARED_KEYS | dict.fromkeys(
    ("encoder", "decoder", "bins", "head", "model", "loss", "optim", "schedule", "callbacks", "logger")
    + ("min_depth", "max_depth", "pretrained_encoder", "resume", "baseline")
)
EVAL_KEYS = SHARED_KEYS | {"checkpoint": None, "released": ("min_depth", "max_depth")}


def prepare(cfg: DictConfig, known: dict[str, Any]) -> None:
    """Check a configuration and seed every random generator.

    Raises:
        ConfigError: for unknown or unanswered options, and for a multirun over several devices.
    """
    check_config(cfg, known)
    _refuse_parallel_multirun(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)


def build_network(cfg: DictConfig) -> SA2Depth:
    """The network of ``cfg.model``, with its spec attached."""
    spec = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(spec, dict)
    return build_model(spec)


def build_data(cfg: DictConfig, stage: str) -> L.LightningDataModule:
    """The data module, set up, so that missing files are known before anything else starts.

    Args:
        cfg: the whole configuration.
        stage: ``fit``, ``test`` or ``all``.
    """
    data: L.LightningDataModule = instantiate(cfg.data)
    for name in ("fit", "test") if stage == "all" else (stage,):
        data.setup(name)
    return data


def build_protocol(cfg: DictConfig) -> Protocol:
    """The evaluation protocol."""
    return load_protocol(cfg.protocol)


def build_trainer(cfg: DictConfig, with_logs: bool = True) -> L.Trainer:
    """Lightning's trainer with the configured callbacks and loggers (``False``: with neither)."""
    if not with_logs:
        trainer: L.Trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
        return trainer
    callbacks = [instantiate(node) for node in (cfg.get("callbacks") or {}).values() if node is not None]
    loggers = [instantiate(node) for node in (cfg.get("logger") or {}).values() if node is not None]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
    return trainer


def device_count(cfg: DictConfig) -> int:
    """How many processes a trainer configuration asks for on this machine."""
    devices = cfg.trainer.get("devices", 1)
    if devices in (-1, "-1", "auto"):
        on_gpu = cfg.trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        return max(torch.cuda.device_count(), 1) if on_gpu else 1
    if isinstance(devices, str):
        return len([d for d in devices.split(",") if d.strip()]) if "," in devices else int(devices)
    return int(devices) if isinstance(devices, int) else len(devices)


def _refuse_parallel_multirun(cfg: DictConfig) -> None:
    in_multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if in_multirun and (count := device_count(cfg)) * cfg.trainer.get("num_nodes", 1) > 1:
        raise ConfigError(
            f"--multirun with {count} devices a job is refused: each child process of a job would start the whole "
            "sweep again, and the next job would inherit this one's rank (jobs then train on a part of the data "
            "without a word). Run the jobs one by one, or with one device each: trainer=gpu or trainer=cpu."
        )
