"""Evaluation: ``python -m sa2depth.eval checkpoint=... protocol=nyu_eigen``.

It scores a checkpoint of ours, of Lightning or of the released code on the test images of a data set; or, with
``predictions=DIR``, depth that any other program has written into files.
"""

import sys
from dataclasses import replace
from pathlib import Path

from sa2depth.stages import Progress, loading, stage

with loading("PyTorch and Lightning", command=__name__ == "__main__"):
    from omegaconf import DictConfig

    from sa2depth.config import launch
    from sa2depth.config.options import EVAL
    from sa2depth.errors import ConfigError, DataError
    from sa2depth.lit import DepthModule
    from sa2depth.lit.callbacks.pictures import kept_examples
    from sa2depth.metrics import load_protocol
    from sa2depth.metrics.any_size import stride_multiple
    from sa2depth.run.build import (
        build_data,
        build_trainer,
        check_input,
        prepared,
        without_truth,
    )
    from sa2depth.run.plan import (
        count_parameters,
        describe_device,
        device_facts,
        print_plan,
    )
    from sa2depth.run.predictions import PredictionReader
    from sa2depth.run.processes import ending_together
    from sa2depth.run.results import finish
    from sa2depth.run.scoring import PredictionFiles
    from sa2depth.targets import parse_trusted
    from sa2depth.weights import load_model


def evaluate(cfg: DictConfig) -> float:
    """Score one checkpoint, or one folder of predictions.

    Returns:
        ``abs_rel``, the mean over the test images.

    Raises:
        UserError: the configuration, data set, checkpoint or predictions cannot work.
    """
    with prepared(cfg, EVAL) as set_up:
        _require_one(cfg)
        return evaluate_network(cfg, set_up) if cfg.predictions is None else evaluate_files(cfg, set_up)


def _require_one(cfg: DictConfig) -> None:
    if (cfg.checkpoint is None) == (cfg.predictions is None):
        given = "neither" if cfg.checkpoint is None else "both"
        raise ConfigError(
            f"give either checkpoint=FILE (a network to run) or predictions=DIR (depth in files); you gave {given}"
        )


def evaluate_network(cfg: DictConfig, set_up: Progress) -> float:
    """Run a checkpoint on the test images and score its depth; see `evaluate`."""
    for option in ("prediction_scale", "prediction_resize"):
        if cfg[option] is not None and cfg[option] is not False:
            raise ConfigError(
                f"{option}={cfg[option]} is for predictions=DIR only: remove it to score a checkpoint"
            )
    depths = {"min_depth": cfg.released.min_depth, "max_depth": cfg.released.max_depth}
    model = load_model(cfg.checkpoint, **depths, trusted=parse_trusted(cfg.trusted))
    protocol = load_protocol(cfg.protocol)
    data = build_data(cfg, protocol, "test")
    multiple = stride_multiple(model)
    check_input(protocol, multiple, data, "test")
    module = DepthModule(model, protocol=protocol)
    trainer = build_trainer(cfg, with_logs=False)
    folder = Path(cfg.paths.output_dir)
    set_up.end()
    print_plan(
        f"sa2depth.eval: {cfg.checkpoint}",
        cfg,
        data,
        protocol,
        {
            "encoder": type(model.encoder).__name__,
            "parameters": count_parameters(model),
            "device": describe_device(trainer),
        },
        multiple,
    )
    with ending_together(trainer):
        with stage("test", shown=False):
            trainer.test(module, datamodule=data, verbose=False)
        evaluation = replace(module.evaluation, without_truth=without_truth(data))
        circumstances = {**device_facts(trainer), "checkpoint": str(cfg.checkpoint)}
        return finish(folder, evaluation, kept_examples(trainer), circumstances, trainer=trainer)["abs_rel"]


def evaluate_files(cfg: DictConfig, set_up: Progress) -> float:
    """Score predictions in files, without the trainer and its options; see `evaluate`."""
    protocol = load_protocol(cfg.protocol)
    data = build_data(cfg, protocol, "test")
    source = data.source("test")
    if source is None:
        raise DataError(
            "there are no test images, because data.test is null: choose a data set that has them"
        )
    reader = PredictionReader(cfg.prediction_scale, cfg.prediction_resize)
    files = PredictionFiles(Path(cfg.predictions), source, reader, protocol)
    folder = Path(cfg.paths.output_dir)
    set_up.end()
    print_plan(
        f"sa2depth.eval: predictions in {cfg.predictions}",
        cfg,
        data,
        protocol,
        {"predictions": files.describe()},
    )
    evaluation, examples, resized = files.score()
    circumstances = {
        "device": "CPU, no network",
        "precision": "as in the files",
        "predictions": f"{files.describe()}, {resized:,} resized",
    }
    evaluation = replace(evaluation, without_truth=without_truth(data))
    return finish(folder, evaluation, examples, circumstances)["abs_rel"]


def main() -> None:
    """Entry point of ``python -m sa2depth.eval``."""
    sys.exit(launch("eval", evaluate))


if __name__ == "__main__":
    main()
