"""Evaluation: ``python -m sa2depth.eval checkpoint=... protocol=nyu_eigen``.

Scores a checkpoint of ours, of Lightning or of the released code on the test images of a data set.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from sa2depth.config import launch
from sa2depth.lit import DepthModule
from sa2depth.metrics import load_protocol
from sa2depth.run.build import EVAL_KEYS, build_data, build_trainer, prepare
from sa2depth.run.plan import count_parameters, describe_device, print_plan
from sa2depth.run.results import finish
from sa2depth.weights import load_model


def evaluate(cfg: DictConfig) -> float:
    """Score one checkpoint.

    Returns:
        ``abs_rel``, the mean over the test images.

    Raises:
        UserError: for a configuration, a data set or a checkpoint that cannot work.
    """
    prepare(cfg, EVAL_KEYS)
    model = load_model(cfg.checkpoint, min_depth=cfg.released.min_depth, max_depth=cfg.released.max_depth)
    protocol = load_protocol(cfg.protocol)
    data = build_data(cfg, protocol, "test")
    module = DepthModule(model, protocol=protocol)
    trainer = build_trainer(cfg, with_logs=False)
    folder = Path(cfg.paths.output_dir)
    print_plan(
        f"sa2depth.eval: {cfg.checkpoint}",
        {
            "data": data.describe(),
            "encoder": type(model.encoder).__name__,
            "parameters": count_parameters(model),
            "device": describe_device(trainer),
            "protocol": f"{protocol.name} v{protocol.version}: {protocol.description}",
            "output": str(folder),
        },
    )
    trainer.test(module, datamodule=data, verbose=False)
    return finish(folder, module, trainer)["abs_rel"]


def main() -> None:
    """Entry point of ``python -m sa2depth.eval``."""
    sys.exit(launch("eval", evaluate))


if __name__ == "__main__":
    main()
