"""Weights & Biases, imported only on request; any failure of it costs a log line and never the training."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lightning.pytorch.loggers import Logger

from sa2depth.errors import ConfigError
from sa2depth.quoting import argument

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

_LOG = logging.getLogger(__name__)

LOGIN_S, INIT_S, FINISH_S = 5, 20, 120
"""Most seconds that a run waits for the server to check its key, to open a run, and to take the last upload."""

_MODES = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}


def wandb_logger(
    *,
    project: str,
    save_dir: str,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    offline: bool | None = None,
) -> "WandbLogger":
    """Lightning's W&B logger, which never ends a run; the arguments are those of ``conf/logger/wandb.yaml``.

    Args:
        project: W&B project.
        save_dir: folder of the local files.
        name: name of the run.
        group: group of the run, for sweeps.
        tags: tags of the run.
        offline: keep everything on this machine (``wandb sync`` sends it later). ``None`` follows ``WANDB_MODE``; if
            that is not set, it means offline without a login, or if the server does not answer or refuses the key.

    Raises:
        ConfigError: wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise ConfigError("logger=wandb needs the package wandb: run pip install 'sa2depth[wandb]'")
    import wandb

    if offline is None:
        mode = _MODES.get(environ.get("WANDB_MODE", "").lower()) or _reachable(save_dir)
    else:
        mode = "offline" if offline else "online"
    limits = {"init_timeout": INIT_S, "finish_timeout": FINISH_S}
    return _lasting_logger()(
        project=project,
        name=name,
        save_dir=save_dir,
        # wandb has already read its environment, so Lightning's own switch to offline would come too late
        mode=mode,
        group=group,
        tags=list(tags),
        settings=wandb.Settings(**{k: v for k, v in limits.items() if f"WANDB_{k.upper()}" not in environ}),
    )


def _reachable(save_dir: str) -> str:
    """``online`` if the server accepts the key, else ``offline``; a warning gives the reason unless there is no key."""
    import wandb

    try:
        with patch.dict(environ, WANDB_HTTP_TIMEOUT=environ.get("WANDB_HTTP_TIMEOUT", str(LOGIN_S))):
            return "online" if wandb.login(prompt=False, verify=True) else "offline"
    except Exception as error:
        said = str(error)
        refused = any(f"error {code}" in said for code in (401, 403)) or "API key" in said
        host = wandb.setup().settings.base_url
        reason = f"{host} refuses the key" if refused else f"{host} does not answer correctly"
        _LOG.warning("%s (%s): this run is logged offline; %s", reason, _line(said), _later(save_dir))
        return "offline"


def _later(save_dir: str | None) -> str:
    folder = Path(save_dir or ".") / "wandb"
    return f"'wandb sync {argument(folder)}/*run-*' uploads it later"


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _lasting_logger() -> "type[WandbLogger]":
    """Make the class when wandb is requested, because its base class is an optional import."""
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.utilities import rank_zero_only

    class LastingWandbLogger(WandbLogger):
        """Goes offline if a run cannot be opened online, and stops logging if that fails, too."""

        @property
        def experiment(self) -> Any:
            """The W&B run."""
            if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
                _open(self._wandb_init, self.save_dir, lambda: super(LastingWandbLogger, self).experiment)
            return super().experiment

    def lasting(name: str) -> Callable[..., None]:
        original: Any = getattr(WandbLogger, name)

        @functools.wraps(original)
        @rank_zero_only
        def call(self: Any, *args: Any, **kwargs: Any) -> None:
            if getattr(self, "_given_up", False):
                return
            try:
                original(self, *args, **kwargs)
            except Exception as error:
                self._given_up = True
                words = "Weights & Biases failed (%s): nothing more is logged there; %s"
                _LOG.warning(words, _line(error), _later(self.save_dir))

        return call

    for name in ("log_metrics", "log_hyperparams", "log_image", "finalize"):
        setattr(LastingWandbLogger, name, lasting(name))
    return LastingWandbLogger


def _open(init: dict[str, Any], save_dir: str | None, run: Callable[[], Any]) -> None:
    """Open a W&B run in the wanted mode; if that fails, offline; if that fails, disabled."""
    for mode, consequence in (
        ("offline", "this run is logged offline"),
        ("disabled", "nothing is logged there"),
    ):
        try:
            run()
            return
        except Exception as error:
            if init.get("mode") == "disabled":
                raise
            init["mode"] = mode if init.get("mode") == "online" else "disabled"
            advice = f"; {_later(save_dir)}" if init["mode"] == "offline" else ""
            said = consequence if init["mode"] == mode else "nothing is logged there"
            _LOG.warning("Weights & Biases cannot open a run (%s): %s%s", _line(error), said, advice)


def close_loggers(loggers: Iterable[Logger], pictures: Sequence[Path]) -> None:
    """Send a run's pictures to the loggers that show pictures, and end their runs.

    The next job of a sweep would log into a W&B run that is still open.
    """
    for logger in loggers:
        if hasattr(logger, "log_image"):
            dashboard: Any = logger
            try:
                dashboard.log_image("pictures", [str(path) for path in pictures])
                finish = getattr(dashboard.experiment, "finish", None)
                if finish is not None:
                    finish()
            except Exception as error:
                _LOG.warning("%s could not be closed: %s", type(logger).__name__, _line(error))
