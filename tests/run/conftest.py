"""A tiny training through the real entry point, shared by the tests that check its files."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from sa2depth.resources import conf_dir

TINY = (
    "experiment=demo",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "trainer.check_val_every_n_epoch=1",
    "data.train.count=8",
    "data.val.count=5",
    "data.test.count=7",
    "data.train.height=64",
    "data.train.width=64",
    "data.batch_size=4",
    "data.eval_batch_size=2",
    "schedule.warmup_steps=0",
    "trainer.accelerator=cpu",
)
"""Seconds on one core: 8 training, 5 validation and 7 test scenes."""


def run_program(
    module: str, *arguments: str, cwd: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS`` as a user would, in a session of its own."""
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_"))
    }
    environment |= {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )


@pytest.fixture(scope="session")
def program():
    """`run_program`."""
    return run_program


@pytest.fixture(scope="session")
def tiny():
    """Overrides of the tiny training."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """``(folder, completed process)`` of one tiny training."""
    cwd = tmp_path_factory.mktemp("tiny")
    done = run_program("sa2depth.train", *TINY, "hydra.run.dir=out", cwd=cwd)
    assert done.returncode == 0, done.stderr[-4000:]
    return cwd / "out", done


@pytest.fixture(scope="session")
def option_probes():
    """The module `option_probes` beside this file: test modules cannot import one another."""
    spec = spec_from_file_location("option_probes", Path(__file__).with_name("option_probes.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def evaluate_tiny():
    """``(model file, empty folder) -> metrics`` of the tiny training's test scenes by ``sa2depth.eval``."""

    def evaluate(model: Path, folder: Path) -> dict[str, float]:
        done = run_program(
            "sa2depth.eval",
            *(f"checkpoint={model}", "protocol=synthetic", "data=synthetic", "data.train.kind=streets"),
            *("data.test.count=7", "data.train.height=64", "data.train.width=64", "data.num_workers=0"),
            *("trainer=cpu", "hydra.run.dir=out"),
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (folder / "out/grid.png").is_file()
        return json.loads((folder / "out/metrics.json").read_text())["metrics"]

    return evaluate


@pytest.fixture
def evaluate_here(tmp_path, monkeypatch):
    """``(overrides) -> metrics.json`` of ``sa2depth.eval`` in this process; errors are raised, not printed."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")

    def evaluate(*overrides: str, folder: Path = tmp_path / "here") -> dict[str, Any]:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("eval", overrides=[*overrides, f"paths.output_dir={folder}"])
        program = import_module("sa2depth.eval")
        program.evaluate(cfg)
        return json.loads((folder / "metrics.json").read_text())

    return evaluate
