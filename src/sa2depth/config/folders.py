"""The folders of runs: keep files that Hydra would overwrite, fix the folder of a sweep, and give a run one folder.

``torchrun`` and ``srun`` start all processes of a run alike, each with its own time in the folder's name. The run's
folder is that of the first process, which `sa2depth.run.results.finish` tells the others.
"""

import sys
from contextlib import ExitStack, suppress
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

at_the_end = ExitStack()
"""Clean-up that `sa2depth.config.launch.launch` runs at its end, after Ctrl-C too; Hydra runs no callback then."""


class RunFolders(Callback):
    """A callback of Hydra, set in ``conf/hydra/default.yaml``."""

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
        places = {"hydra.output_subdir": None, "hydra.job.name": job, "hydra.run.dir": ""}
        for text in config.hydra.overrides.hydra:
            places.pop(text.lstrip("+").partition("=")[0], None)
        if "hydra.run.dir" in places:
            passing = TemporaryDirectory(prefix="sa2depth_", ignore_cleanup_errors=True)
            places["hydra.run.dir"] = at_the_end.enter_context(passing)
        with read_write(config), open_dict(config):
            for option, value in places.items():
                OmegaConf.update(config, option, value)

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
    """The launcher of this process, if it has started other processes, too."""
    found = started()
    return found if found is not None and found.processes > 1 else None


def _be_first() -> None:
    """Set Lightning's rank to 0: with the inherited one, which it read when imported, the run would print nothing."""
    at_the_end.callback(setattr, rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))
    setattr(rank_zero_only, "rank", 0)  # noqa: B010
