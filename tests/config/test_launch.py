"""What the door of the Hydra programs says of folders and classes that fail, and which errors keep their traceback."""

import logging
import os
import re
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from sa2depth.config import launch

TARGETS = {
    "text": "builtins.int",
    "kind": "builtins.len",
    "missing": "sa2depth.lit.schedules.polynomial_factor",
}


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
    """``(job, overrides) -> (exit status, stderr)`` of ``launch`` on the training configuration."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    hydras, log = Singleton.get_state(), logging.getLogger()
    handlers, level = list(log.handlers), log.level

    def run(job, *overrides):
        status = launch("train", job, overrides)
        return status, capsys.readouterr().err

    yield run
    Singleton.set_state(hydras)  # what Hydra leaves behind, for the tests that run after these
    log.handlers[:] = handlers
    log.setLevel(level)


def nothing(cfg: DictConfig) -> None:
    """A job that does nothing."""


@pytest.mark.parametrize("option", ["paths.runs_dir", "hydra.run.dir"])
def test_a_folder_that_cannot_be_made_is_named(door, tmp_path, option):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "x"
    status, said = door(nothing, f"{option}={folder}")
    assert status == 2
    assert said == (
        f"error: {option}={folder} cannot be created (Not a directory); choose another with {option}=FOLDER\n"
    )


def test_the_folder_of_a_sweep_too(door, tmp_path):
    (tmp_path / "file").write_text("")
    status, said = door(nothing, "-m", f"hydra.sweep.dir={tmp_path}/file/x", "seed=1,2")
    assert status == 2
    assert f"error: hydra.sweep.dir={tmp_path}/file/x cannot be created (Not a directory)" in said


def test_the_default_folder_too(door, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SA2DEPTH_RUNS", "file")
    status, said = door(nothing)
    assert status == 2
    assert re.fullmatch(r"error: the run's folder file.* cannot be created .*paths.runs_dir=FOLDER\n", said)


@pytest.mark.parametrize("error", [FileNotFoundError, TypeError, ValueError])
def test_errors_of_the_job_itself_keep_their_traceback(door, error):
    def job(cfg: DictConfig) -> None:
        raise error

    with pytest.raises(error):
        door(job)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DataLoader worker (pid 9) is killed by signal: Bus error."), "--shm-size=8g"),
        (
            OSError(28, "No space left on device", "best.ckpt"),
            "best.ckpt cannot be written (No space left on device)",
        ),
    ],
)
def test_what_the_machine_runs_out_of_is_one_message(door, error, said):
    def job(cfg: DictConfig) -> None:
        raise error

    status, message = door(job)
    assert status == 2
    assert said in message


def test_a_folder_that_the_job_cannot_make_is_no_matter_of_the_run(door, tmp_path):
    (tmp_path / "file").write_text("")

    def job(cfg: DictConfig) -> None:
        os.makedirs(tmp_path / "file" / "y")  # noqa: PTH103  # no Path.mkdir frame, and one
        (tmp_path / "file" / "y").mkdir()

    with pytest.raises(NotADirectoryError):
        door(job)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("{_target_:builtins.int,_args_:[abc]}", ["invalid literal", "'abc'", "(in loss)"]),
        (
            "{_target_:builtins.len,_args_:[3]}",
            ["object of type 'int' has no len()", "(in loss)"],
        ),
        ("{_target_:sa2depth.lit.schedules.polynomial_factor,step:1}", ["missing 3 required", "(in loss)"]),
        ("{_target_:sa2depth.losses.SILog,scale:-1}", ["scale must be positive", "(in loss)"]),
    ],
)
def test_what_cannot_be_built_is_one_line_with_its_node(door, node, words):
    def job(cfg: DictConfig) -> None:
        instantiate(cfg.loss)

    status, said = door(job, "~loss", f"+loss={node}")
    assert status == 2
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert message.count("\n") == 1
    for word in words:
        assert word in message


def test_a_class_that_is_broken_says_where(door):
    status, said = door(lambda cfg: instantiate(cfg.loss), "~loss", f"+loss={{_target_:{__name__}.Broken}}")
    assert status == 2
    assert re.search(r"\(in loss\), says .*test_launch.py:\d+\n$", said)


class Broken:
    """A loss with a mistake in it."""

    def __init__(self) -> None:
        self.weight = 1 + None


@pytest.mark.parametrize(("rank", "folder"), [(0, None), (1, None), (3, "mine")])
def test_only_the_first_process_of_a_launcher_makes_a_run_folder(door, tmp_path, monkeypatch, rank, folder):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    seen = []

    def job(cfg: DictConfig) -> None:
        seen.extend((Path(cfg.paths.output_dir), HydraConfig.get().job.name))
        assert Path(cfg.paths.output_dir).is_dir()

    status, said = door(job, *([f"hydra.run.dir={tmp_path / folder}"] if folder else []))
    assert (status, said) == (0, "")
    place, name = seen
    assert (tmp_path / "runs").exists() is (rank == 0)
    assert rank == 0 or name == f"train_process_{rank}"
    if folder:
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["train_process_3.log"]
    else:
        assert place.exists() is (rank == 0)
