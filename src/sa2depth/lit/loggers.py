"""Weights & Biases, offline where nobody is logged in, and imported only when asked for."""

from collections.abc import Sequence
from importlib.util import find_spec
from os import environ
from typing import TYPE_CHECKING

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
        project=project, name=name, save_dir=save_dir, offline=offline, group=group, tags=list(tags)
    )
