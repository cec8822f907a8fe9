"""Training: ``python -m sa2depth.train experiment=nyu_s``.

It reads the configuration, builds network, data and trainer, fits, scores the best checkpoint on the test images, and
names every file that it wrote.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sa2depth.stages import Progress, loading, stage

with loading("PyTorch and Lightning", command=__name__ == "__main__"):
    import lightning as L
    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf

    from sa2depth.config import launch
    from sa2depth.config.options import TRAIN
    from sa2depth.lit import Continuation, CsvLog, DepthModule
    from sa2depth.lit.callbacks.pictures import kept_examples
    from sa2depth.metrics import load_protocol
    from sa2depth.models import SA2Depth
    from sa2depth.run.build import (
        build_data,
        build_network,
        build_trainer,
        check_input,
        prepared,
        without_truth,
    )
    from sa2depth.run.plan import (
        count_parameters,
        describe_device,
        describe_ways,
        device_facts,
        print_plan,
    )
    from sa2depth.run.processes import ending_together
    from sa2depth.run.results import finish
    from sa2depth.runtime.checkpointing import checkpoint_layers
    from sa2depth.weights import TrainingState, load_encoder, read_training_state


def train(cfg: DictConfig) -> float:
    """Run one training job.

    Returns:
        ``abs_rel`` on the test images, which a sweeper may minimise.

    Raises:
        UserError: the configuration, data set or weights cannot work; raised before training starts.
    """
    with prepared(cfg, TRAIN) as set_up:
        return _train(cfg, set_up)


def _train(cfg: DictConfig, set_up: Progress) -> float:
    resumed = None if cfg.resume is None else read_training_state(str(cfg.resume))
    model = build_network(cfg)
    if resumed is not None:
        resumed.check_network(model.spec)
    encoder = _load_pretrained(model, cfg.pretrained_encoder)
    checkpoint_layers(model, cfg.gradient_checkpointing)
    protocol = load_protocol(cfg.protocol)
    data = build_data(cfg, protocol, "fit", "test")
    check_input(protocol, model.stride_multiple, data, "val", "test")
    module = DepthModule(
        model,
        instantiate(cfg.loss),
        instantiate(cfg.optim),
        instantiate(cfg.schedule),
        protocol=protocol,
        min_depth=cfg.min_depth,
        max_depth=cfg.max_depth,
    )
    trainer = build_trainer(cfg)
    if resumed is not None:
        resumed.check_unfinished(trainer.max_epochs, trainer.max_steps)
        _continue(trainer, resumed)
    set_up.end()
    print_plan(
        f"sa2depth.train: {cfg.name}",
        cfg,
        data,
        protocol,
        {
            "encoder": encoder,
            "parameters": count_parameters(model),
            "device": describe_device(trainer),
            **describe_ways(cfg, model),
            "training range": f"{cfg.min_depth:g}-{cfg.max_depth:g} m",
        },
        model.stride_multiple,
    )
    with ending_together(trainer):
        _log_hyperparameters(trainer, cfg)
        start = time.perf_counter()
        with stage("fit", shown=False):
            trainer.fit(module, datamodule=data, ckpt_path=cfg.resume)
        fit_s, steps = time.perf_counter() - start, trainer.global_step
        best = _best(trainer)
        with stage("test", shown=False):
            trainer.test(module, datamodule=data, ckpt_path=best, verbose=False)
        train_source, test_source = data.source("train"), data.source("test")
        scores = finish(
            Path(cfg.paths.output_dir),
            replace(module.evaluation, without_truth=without_truth(data)),
            kept_examples(trainer),
            {**device_facts(trainer), "checkpoint": best or "the last state (there is no best checkpoint)"},
            trainer=trainer,
            baseline=(train_source, test_source) if cfg.baseline and train_source and test_source else None,
            notes={"encoder": encoder, "seed": cfg.seed, "steps": steps, "fit_s": round(fit_s, 1)},
            model=model,
        )
    return scores["abs_rel"]


def _load_pretrained(model: SA2Depth, source: str | None) -> str:
    if source is None:
        return f"{type(model.encoder).__name__}, from scratch"
    report = load_encoder(model, source)
    return f"{type(model.encoder).__name__}, {report}"


def _continue(trainer: L.Trainer, resumed: TrainingState) -> None:
    """Let the callbacks and loggers of a run continue where another one has ended."""
    trainer.callbacks.insert(0, Continuation(resumed.path))  # type: ignore[attr-defined]
    earlier = resumed.path.expanduser().parent.parent / "metrics.csv"
    for logger in trainer.loggers:
        if isinstance(logger, CsvLog):
            logger.go_on_from(earlier, resumed.logged_steps)


def _best(trainer: L.Trainer) -> str | None:
    callback = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
    return path or None


def _log_hyperparameters(trainer: L.Trainer, cfg: DictConfig) -> None:
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)


def main() -> None:
    """Entry point of ``python -m sa2depth.train``."""
    sys.exit(launch("train", train))


if __name__ == "__main__":
    main()
