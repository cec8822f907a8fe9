"""The folders of runs: keep files that Hydra would overwrite, fix the folder of a sweep, and give a run one folder.

``torchrun`` and ``srun`` start all processes of a run alike, each with its own time in the folder's name. The run's
folder is that of the first process, which `sa2depth.run.results.finish` tells the others.
"""

import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.experimental.callback import Callback
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sa2depth.atomic import keep_numbered
from sa2depth.config.cluster import Started, is_distributed, note_of_independence, started
from sa2depth.quoting import hydra_quoted


class RunFolders(Callback):
    """A callback of Hydra, set in ``conf/hydra/default.yaml``."""

    def __init__(self) -> None:
        self._passing: TemporaryDirectory[str] | None = None

    def on_run_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Decide whether this process has a run folder; keep the configuration of an earlier run in it.

        The configuration of the earlier run is renamed with a number. Lightning's own launcher passes the folder on. A
        process whose run requests one device runs alone, whatever number it inherited.
        """
        if found := _among_others():
            if not is_distributed(config):
                if note := note_of_independence(config):
                    sys.stderr.write(f"note: {note}\n")
                _be_first()
            elif found.rank > 0:
                self._leave_the_folder_to_the_first(config, f"{config_name}_process_{found.rank}")
        name = OmegaConf.select(config, "hydra.output_subdir")
        folder = OmegaConf.select(config, "hydra.run.dir")
        if name and folder:
            keep_numbered(Path(folder) / name)

    def _leave_the_folder_to_the_first(self, config: DictConfig, job: str) -> None:
        self._passing = TemporaryDirectory(prefix="sa2depth_", ignore_cleanup_errors=True)
        places = {
            "hydra.output_subdir": None,
            "hydra.job.name": job,
            "hydra.run.dir": self._passing.name,
        }
        given = {text.lstrip("+").partition("=")[0] for text in config.hydra.overrides.hydra}
        with read_write(config), open_dict(config):
            for option in places.keys() - given:
                OmegaConf.update(config, option, places[option])

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the temporary folder of a process without a run folder."""
        if self._passing is not None:
            self._passing.cleanup()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the folder of a sweep, because jobs would be scattered if it depended on options that they vary."""
        if _among_others():
            _be_first()
        with suppress(OmegaConfBaseException):
            folder = str(OmegaConf.select(config, "hydra.sweep.dir"))
            with read_write(config), open_dict(config):
                # jobs are composed from these overrides, not from the resolved configuration
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={hydra_quoted(folder)}")


def _among_others() -> Started | None:
    """The launcher of this process, if it has also started others."""
    found = started()
    return found if found is not None and found.processes > 1 else None


def _be_first() -> None:
    """Set Lightning's rank to 0: with the inherited one, which it read when imported, the run would print nothing."""
    setattr(rank_zero_only, "rank", 0)  # noqa: B010
