"""What Hydra is about to overwrite in a folder that holds a run already, and where the jobs of a sweep go."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sa2depth.atomic import keep_numbered
from sa2depth.quoting import hydra_quoted


class RunFolders(Callback):
    """Hydra's callback of ``conf/hydra/default.yaml``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the configuration of an earlier run in this folder, as a resumed run's, under a name with a number."""
        name = OmegaConf.select(config, "hydra.output_subdir")
        folder = OmegaConf.select(config, "hydra.run.dir")
        if name and folder:
            keep_numbered(Path(folder) / name)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the folder of a sweep: one that depends on what the jobs vary would scatter them."""
        with suppress(OmegaConfBaseException):
            folder = str(OmegaConf.select(config, "hydra.sweep.dir"))
            with read_write(config), open_dict(config):
                # jobs are composed from these, not from the resolved configuration
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={hydra_quoted(folder)}")
