"""Checks of a checkpoint before a training resumes from it: it is ours, complete, of the same network, and unfinished.

The file alone answers all of this before anything is trained. Lightning would notice late, with its own messages, and
would not notice a finished run at all.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa2depth.errors import CheckpointError, ConfigError
from sa2depth.quoting import override
from sa2depth.weights.checkpoint import identify
from sa2depth.weights.files import UnreadableError, WeightFile, holds_weights_alone, read_file

_TRAINING = ("optimizer_states", "lr_schedulers", "loops")
_OPTIONS = {"bin_head": "bins", "depth_head": "head"}
"""Parts of an architecture whose option group has another name."""
_SHOWN = 3


@dataclass(frozen=True)
class TrainingState:
    """The progress of the training that wrote a checkpoint.

    Attributes:
        path: The file, as the user named it.
        spec: The architecture that was trained.
        epochs: Finished epochs; an epoch counts after its last batch, even without its validation.
        steps: Finished steps of the optimiser.
        between_epochs: True if saved at the end of an epoch, like ``last.ckpt``.
        logged_steps: Number that the next step has in a log.
    """

    path: Path
    spec: Mapping[str, Any]
    epochs: int
    steps: int
    between_epochs: bool
    logged_steps: int

    def check_network(self, spec: Mapping[str, Any]) -> None:
        """Refuse to resume with another network.

        Args:
            spec: The architecture of the run that resumes.

        Raises:
            CheckpointError: The architectures differ; the message names at most three of the options.
        """
        differing = list(_differences(self.spec, spec))
        if differing:
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            theirs = ", ".join(f"{name}={_plain(value)}" for name, value, _ in differing[:_SHOWN])
            ours = ", ".join(f"{name}={_plain(value)}" for name, _, value in differing[:_SHOWN])
            raise CheckpointError(
                f"resume={self.path} was trained with {theirs}{more}, but this run has {ours}: use the options of that "
                "run, which are in its .hydra/config.yaml, or start a new training without resume"
            )

    def check_unfinished(self, max_epochs: int | None, max_steps: int) -> None:
        """Refuse to resume a training that has no step left to do.

        Args:
            max_epochs: The trainer's limit, which includes epochs done before; -1 or None for no limit.
            max_steps: The limit of optimiser steps, which includes those done before; -1 for no limit.

        Raises:
            ConfigError: A limit is already reached.
        """
        reached = []
        steps = f"{self.steps:,} step{'' if self.steps == 1 else 's'}"
        if max_epochs is not None and 0 <= max_epochs <= self.epochs:
            reached.append(("trainer.max_epochs", f"epoch {self.epochs:,} of {max_epochs:,} ({steps})"))
        if 0 <= max_steps <= self.steps:
            reached.append(("trainer.max_steps", f"step {self.steps:,} of {max_steps:,}"))
        if reached:
            options, places = zip(*reached, strict=True)
            raise ConfigError(
                f"resume={self.path} stands at {' and '.join(places)}: raise {' and '.join(options)}; what was "
                "done before counts towards the limit"
            )
        # With max_steps, Lightning 2.6 repeats the epoch that has just ended, without a step, and counts it.
        if self.between_epochs and max_steps >= 0 and max_epochs == self.epochs + 1:
            raise ConfigError(
                f"resume={self.path} stands at epoch {self.epochs:,} of {max_epochs:,} ({steps}), and with both limits "
                "Lightning would skip the last epoch: set trainer.max_epochs=-1 or trainer.max_steps=-1"
            )


def read_training_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read the progress of a training from its checkpoint; tensors stay on the disk.

    Args:
        path: A Lightning checkpoint of our training, ``checkpoints/last.ckpt`` of a run.

    Raises:
        CheckpointError: There is no such file, or it is damaged, foreign, or holds only weights.
    """
    path = Path(path)
    file = path.expanduser()
    if not file.is_file():
        raise _refused(path, "is not a file" if file.exists() else "does not exist")
    try:
        if holds_weights_alone(file):
            raise _refused(path, "is a safetensors file: a shared model holds no training state")
        return _state(path, read_file(file, mapped=True))
    except UnreadableError as error:
        raise _refused(path, error.what) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(path, f"is a damaged Lightning checkpoint ({error!r})") from error


def _state(path: Path, file: WeightFile) -> TrainingState:
    content = file.content
    if identify(file) != "lightning":
        raise _refused(path, "is not a Lightning checkpoint: it holds no training state")
    if lacking := [name for name in _TRAINING if name not in content]:
        raise _refused(path, f"holds weights without training state (no {', '.join(lacking)})")
    hyper = content.get("hyper_parameters")
    spec = hyper.get("spec") if isinstance(hyper, Mapping) else None
    if not isinstance(spec, Mapping):
        raise _refused(path, "is a Lightning checkpoint of another program (no hyper_parameters['spec'])")
    loop = content["loops"]["fit_loop"]
    epoch, batch = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    steps = int(optimizer["step"]["total"]["completed"])
    # Lightning compares "processed" with max_epochs. It does not count the current epoch; after that epoch's last
    # batch, Lightning ends it without a further step.
    closing = epoch["started"] > epoch["processed"] and batch["is_last_batch"]
    return TrainingState(
        path,
        dict(spec),
        epochs=int(epoch["processed"]) + int(closing),
        steps=steps,
        between_epochs=epoch["started"] == epoch["processed"] > epoch["completed"],
        logged_steps=int(loop.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", steps)),
    )


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"resume={path} {what}; name {_better(path.expanduser())}")


def _better(path: Path) -> str:
    """A checkpoint of the run that this file or folder belongs to, as typed, or else a hint where runs keep one."""
    folder = path if path.is_dir() else path.parent
    for name in ("checkpoints/last.ckpt", "last.ckpt", "checkpoints/best.ckpt", "best.ckpt"):
        if (folder / name).is_file() and folder / name != path:
            typed = override("resume", folder / name)
            return str(folder / name) if typed == f"resume={folder / name}" else f"it as {typed}"
    return "a run's checkpoints/last.ckpt"


def _differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Options in which two architectures differ, with both values; parts of different classes give only the names."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        if one != other:
            yield where, one, other
        return
    classes = [str(part.get("_target_")) for part in (one, other)]
    if classes[0] != classes[1]:
        names = [name.rpartition(".")[2] for name in classes]
        before, now = classes if names[0] == names[1] else names
        yield where or "model", before, now
        return
    for key in {**one, **other}:
        if not str(key).startswith("_"):
            inner = f"{where}.{key}" if where else _OPTIONS.get(key, str(key))
            yield from _differences(one.get(key), other.get(key), inner)


def _plain(value: Any) -> str:
    """A value as written on a command line; ``null`` if one of the two lacks it, ``{...}`` for many options."""
    if isinstance(value, Mapping):
        return "{...}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
