"""Weights & Biases, offline where nobody is logged in, and imported only when asked for."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger

from sa2depth.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


def _logged_in() -> bool:
    import wandb

    return bool(wandb.login(prompt=False))


def wandb_logger(
    *,
    project: str,
    save_dir: str,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    offline: bool | None = None,
) -> "WandbLogger":
    """Lightning's W&B logger; the arguments are those of ``conf/logger/wandb.yaml``.

    Args:
        project: W&B project.
        save_dir: folder of the local files.
        name: name of the run.
        group: group of the run, for sweeps.
        tags: tags of the run.
        offline: keep everything on this machine (``wandb sync`` sends it later); ``None``: only without a login.

    Raises:
        ConfigError: if wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise ConfigError("logger=wandb needs the package wandb: pip install 'sa2depth[wandb]'")
    from lightning.pytorch.loggers import WandbLogger

    if offline is None:
        offline = environ.get("WANDB_MODE") == "offline" or not _logged_in()
    return WandbLogger(
        project=project,
        name=name,
        save_dir=save_dir,
        offline=offline,
        # wandb has read its environment by now: Lightning's way of going offline would come too late
        mode="offline" if offline else "online",
        group=group,
        tags=list(tags),
    )


def close_loggers(loggers: Iterable[Logger], pictures: Sequence[Path]) -> None:
    """Send a run's pictures to the loggers that show pictures, and end their runs.

    An open W&B run would swallow the next job of a sweep.
    """
    for logger in loggers:
        if hasattr(logger, "log_image"):
            dashboard: Any = logger
            dashboard.log_image("pictures", [str(path) for path in pictures])
            dashboard.experiment.finish()
