"""Messages of the Hydra programs about failing folders and classes, and errors that keep their traceback."""

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from sa2depth.errors import DataError

pytestmark = pytest.mark.slow

TARGETS = {
    "text": "builtins.int",
    "kind": "builtins.len",
    "missing": "sa2depth.lit.schedules.polynomial_factor",
}

LAUNCHERS = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "id", "RANK": "rank", "LOCAL_RANK": "rank", "WORLD_SIZE": "count"},
    "parent": {"LOCAL_RANK": "rank", "RANK": "rank", "WORLD_SIZE": "count"},
    "srun": {
        **{"SLURM_JOB_ID": "id", "SLURM_PROCID": "rank", "SLURM_LOCALID": "rank", "SLURM_NTASKS": "count"},
        "SLURM_NTASKS_PER_NODE": "count",
    },
    "jsrun": {"JSM_NAMESPACE_RANK": "rank", "JSM_NAMESPACE_SIZE": "count"},
}


def nothing(cfg: DictConfig) -> None:
    """A job that does nothing."""


@pytest.mark.parametrize("option", ["paths.runs_dir", "hydra.run.dir"])
def test_a_folder_that_cannot_be_made_is_named(launching, tmp_path, option):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "x"
    status, said = launching(nothing, f"{option}={folder}")
    assert status == 2
    assert said == (
        f"error: {option}={folder} cannot be created (Not a directory); choose another with {option}=FOLDER\n"
    )


def test_the_folder_of_a_sweep_too(launching, tmp_path):
    (tmp_path / "file").write_text("")
    status, said = launching(nothing, "-m", f"hydra.sweep.dir={tmp_path}/file/x", "seed=1,2")
    assert status == 2
    assert f"error: hydra.sweep.dir={tmp_path}/file/x cannot be created (Not a directory)" in said


def test_the_default_folder_too(launching, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SA2DEPTH_RUNS", "file")
    status, said = launching(nothing)
    assert status == 2
    assert re.fullmatch(r"error: the run's folder file.* cannot be created .*paths.runs_dir=FOLDER\n", said)


@pytest.mark.parametrize("error", [FileNotFoundError, TypeError, ValueError])
def test_errors_of_the_job_itself_keep_their_traceback(launching, error):
    def job(cfg: DictConfig) -> None:
        raise error

    with pytest.raises(error):
        launching(job)


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
def test_what_the_machine_runs_out_of_is_one_message(launching, error, said):
    def job(cfg: DictConfig) -> None:
        raise error

    status, message = launching(job)
    assert status == 2
    assert said in message


def test_a_folder_that_the_job_cannot_make_is_no_matter_of_the_run(launching, tmp_path):
    (tmp_path / "file").write_text("")

    def job(cfg: DictConfig) -> None:
        os.makedirs(tmp_path / "file" / "y")  # noqa: PTH103  # no Path.mkdir frame, and one
        (tmp_path / "file" / "y").mkdir()

    with pytest.raises(NotADirectoryError):
        launching(job)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("{_target_:builtins.int,_args_:[abc]}", ["invalid literal", "'abc'", "(in loss)"]),
        (
            "{_target_:builtins.len,_args_:[3]}",
            ["object of type 'int' has no len()", "(in loss)"],
        ),
        ("{_target_:sa2depth.lit.schedules.polynomial_factor,step:1}", ["missing 3 required", "(in loss)"]),
        (
            "{_target_:sa2depth.losses.SILog,scale:-1}",
            ["SILog(scale=-1): expected a finite number above 0", "(in loss)"],
        ),
    ],
)
def test_what_cannot_be_built_is_one_line_with_its_node(launching, node, words):
    def job(cfg: DictConfig) -> None:
        instantiate(cfg.loss)

    status, said = launching(job, "~loss", f"+loss={node}")
    assert status == 2
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert message.count("\n") == 1
    for word in words:
        assert word in message


def test_a_class_that_is_broken_says_where(launching):
    status, said = launching(
        lambda cfg: instantiate(cfg.loss), "~loss", f"+loss={{_target_:{__name__}.Broken}}"
    )
    assert status == 2
    assert re.search(r"\(in loss\), raised in .*test_launch.py:\d+\n$", said)


class Broken:
    """A loss with a mistake in it."""

    def __init__(self) -> None:
        self.weight = 1 + None


def launched_by(monkeypatch, launcher, rank, count):
    for name in LAUNCHERS[launcher]:
        monkeypatch.setenv(
            name, {"rank": str(rank), "count": str(count)}.get(LAUNCHERS[launcher][name], "77")
        )
    monkeypatch.setattr(rank_zero_only, "rank", rank)  # Lightning reads it when it is imported


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(("rank", "folder"), [(0, None), (1, None), (3, "mine")])
def test_only_the_first_process_of_a_run_makes_a_run_folder(
    launching, tmp_path, monkeypatch, launcher, rank, folder
):
    launched_by(monkeypatch, launcher, rank, 4)
    seen = []

    def job(cfg: DictConfig) -> None:
        seen.extend((Path(cfg.paths.output_dir), HydraConfig.get().job.name, rank_zero_only.rank))
        assert Path(cfg.paths.output_dir).is_dir()

    several = ["trainer=ddp_sim", "trainer.devices=4"]
    status, said = launching(job, *several, *([f"hydra.run.dir={tmp_path / folder}"] if folder else []))
    assert (status, said) == (0, "")
    place, name, number = seen
    assert number == rank
    assert (tmp_path / "runs").exists() is (rank == 0)
    assert rank == 0 or name == f"train_process_{rank}"
    if folder:
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["train_process_3.log"]
    else:
        assert place.exists() is (rank == 0)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_of_one_process_is_its_own_first_process(launching, tmp_path, monkeypatch, launcher):
    launched_by(monkeypatch, launcher, 1, 2)
    seen = []

    def job(cfg: DictConfig) -> None:
        seen.append(rank_zero_only.rank)
        (Path(cfg.paths.output_dir) / "kept").touch()

    status, said = launching(job, "trainer=cpu")
    assert status == 0
    assert said.startswith("note: process 1 of the 2 that ")
    assert "runs on its own" in said
    assert seen == [0]
    assert (
        len(list(tmp_path.glob("runs/train/*/kept"))) == len(list(tmp_path.glob("runs/train/*/.hydra"))) == 1
    )
    assert rank_zero_only.rank == 1  # as before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("resume=a=b.ckpt", """'resume="a=b.ckpt"'"""),
        ("resume=fü#(1).ckpt", """'resume="fü#(1).ckpt"'"""),
        ("resume=it's.ckpt", """'resume="it'"'"'s.ckpt"'"""),
        ("++resume=~/last.ckpt", """'++resume="~/last.ckpt"'"""),
        ("+data.train.ids=[train/a=b,c]", """'+data.train.ids=["train/a=b",c]'"""),
        ("resume=a,b", """'resume="a,b"'"""),
    ],
)
def test_a_value_that_hydras_grammar_refuses_is_shown_as_it_must_be_typed(launching, tmp_path, given, said):
    status, message = launching(nothing, given)
    assert status == 2
    assert message.count("\n") == 1
    assert message.startswith(f"error: {given}")
    assert message.rstrip().endswith(said)
    assert given.partition("=")[0].lstrip("+") in message
    values = []
    assert launching(lambda cfg: values.append(cfg), *shlex.split(said)) == (0, "")


def test_an_argument_that_is_no_option_at_all(launching):
    status, message = launching(nothing, "resume last.ckpt")
    assert (status, message.count("\n")) == (2, 1)
    assert "error: resume last.ckpt is not an option: write OPTION=VALUE" in message


def test_a_base_says_what_must_be_chosen(launching):
    status, message = launching(nothing, "experiment=nyu_base")
    assert status == 2
    assert message.startswith("error: model has no default here: choose one of model=sa2depth_l, model=")
    assert message.count("\n") == 1
    assert launching(nothing, "experiment=nyu_base", "model=sa2depth_t") == (0, "")
    assert "_base" not in launching(nothing, "experiment=nyu_x")[1]


def test_a_resumed_runs_folder_keeps_the_configuration_of_the_first_part(launching, tmp_path):
    for seed in (1, 2, 3):
        assert launching(nothing, "hydra.run.dir=out", f"seed={seed}") == (0, "")
    kept = {p.parent.name: p.read_text() for p in tmp_path.glob("out/.hydra*/overrides.yaml")}
    assert kept == {".hydra_1": "- seed=1\n", ".hydra_2": "- seed=2\n", ".hydra": "- seed=3\n"}


def failing(cfg: DictConfig) -> float:
    """A job that fails for some seeds."""
    if cfg.seed == 1:
        raise DataError("image 17\ncannot be read")
    if cfg.seed == 3:
        raise ZeroDivisionError("a mistake")
    if cfg.seed == 5:
        raise KeyboardInterrupt
    return 0.5


def test_every_failing_job_of_a_sweep_is_named_at_once_and_at_the_end(launching, tmp_path):
    status, said = launching(failing, "-m", "seed=1,2,3,4", "hydra.sweep.dir=sweep")
    assert status == 1
    lines = said.splitlines()
    assert "error: job 0 failed (seed=1): image 17 cannot be read" in lines
    assert "error: job 2 failed (seed=3): ZeroDivisionError: a mistake" in lines
    assert said.count("Traceback") == 1  # of the mistake alone
    assert lines[-7] == "error: 2 of 4 jobs failed:"
    assert [line.strip() for line in lines[-6:]] == [
        *("0  seed=1", "image 17 cannot be read", f"{tmp_path}/sweep/0"),
        *("2  seed=3", "ZeroDivisionError: a mistake", f"{tmp_path}/sweep/2"),
    ]


def test_a_sweep_of_which_only_the_users_errors_fail_ends_as_those_do(launching):
    status, said = launching(failing, "-m", "seed=1,2", "hydra.sweep.dir=sweep")
    assert (status, said.count("Traceback")) == (2, 0)
    assert launching(failing, "-m", "seed=2,4", "hydra.sweep.dir=sweep") == (0, "")


def test_ctrl_c_stops_a_sweep_and_the_failures_so_far_are_listed(launching, tmp_path):
    status, said = launching(failing, "-m", "seed=1,5,2", "hydra.sweep.dir=sweep")
    assert status == 130
    assert "Traceback" not in said
    assert said.endswith(
        f"error: 1 of 2 jobs failed:\n  0  seed=1\n     image 17 cannot be read\n     {tmp_path}/sweep/0\n"
    )
    assert not (tmp_path / "sweep/2").exists()


@pytest.mark.parametrize("where", [[], ["hydra.sweep.dir=sweeps/${name}"]])
def test_the_jobs_of_a_sweep_lie_in_one_folder_whatever_their_names(launching, tmp_path, where):
    assert launching(nothing, "-m", "experiment=demo,nyu_labelled,kitti_t", "seed=1,2", *where) == (0, "")
    (sweep,) = tmp_path.glob("sweeps/*" if where else "runs/multirun/*")
    assert sorted(p.name for p in sweep.iterdir()) == ["0", "1", "2", "3", "4", "5", "multirun.yaml"]


def test_a_full_disk_is_one_line(launching):
    def job(cfg: DictConfig) -> None:
        Path("/dev/full").write_text("x" * 100_000)

    full = RuntimeError("I/O error: No space left on device (os error 28)")
    for fails in (job, lambda cfg: (_ for _ in ()).throw(full)):
        status, said = launching(fails)
        assert status == 2
        (message,) = said[said.index("error: ") :].splitlines()
        assert "cannot be written (No space left on device): free some space" in message


@pytest.fixture
def own_files(tmp_path):
    """A folder of the user's own configuration files, relative to the current folder."""
    (tmp_path / "my conf" / "encoder").mkdir(parents=True)
    (tmp_path / "my conf" / "encoder" / "mine.yaml").write_text("_target_: collections.Counter\nwidth: 3\n")
    return "my conf"


@pytest.mark.parametrize(
    "how", [("--config-dir", "{}"), ("--config-dir={}",), ("-cd", "{}"), ("hydra.searchpath=['file://{}']",)]
)
def test_files_of_the_users_own_are_found_and_their_names_are_hinted_at(launching, own_files, how):
    arguments = [word.format(own_files) for word in how]
    seen = []

    def job(cfg):
        seen.append(dict(cfg.encoder))

    assert launching(job, *arguments, "encoder=mine", "encoder.width=4") == (0, "")
    assert seen == [{"_target_": "collections.Counter", "width": 4}]
    status, said = launching(nothing, *arguments, "encoder=mine", "encoder.widht=4")
    assert status == 2
    assert said.startswith("error: unknown option encoder.widht; did you mean encoder.width")
    status, said = launching(nothing, *arguments, "encoder=min")
    assert status == 2
    assert "there is no encoder=min; did you mean mine?" in said


@pytest.mark.parametrize(
    ("given", "better", "said"),
    [
        (
            "head.directions=2",
            "+head.directions=2",
            "is not in the configuration, but sa2depth.models.ScanHead has it",
        ),
        ("+head.bins=64", "head.bins=64", "is already there"),
    ],
)
def test_a_plus_too_few_or_too_many_is_named(launching, given, better, said):
    status, message = launching(nothing, given)
    assert (status, message.count("\n")) == (2, 1)
    assert said in message
    assert message.endswith(f" {better}\n")
    assert launching(nothing, better) == (0, "")


def test_an_option_of_a_class_of_the_users_own_is_added_with_a_plus(launching):
    status, said = launching(nothing, "encoder._target_=mypkg.Encoder", "encoder.width=64")
    assert status == 2
    assert said.endswith("to add an option of the class that you named, type a plus: +encoder.width=64\n")
