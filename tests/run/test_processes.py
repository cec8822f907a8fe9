"""If one of two processes of a training fails, the training ends soon, says why, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sa2depth.errors import DataError, UserError
from sa2depth.run.processes import each_on_its_own, ending_together

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]

# At its end the first process is slow, like loggers, and each process waits forever, like NCCL for collectives.
LOSS = """
import atexit, os, signal, time, torch
from sa2depth.errors import DataError
from sa2depth.losses import SILog

class Waiting:
    def __del__(self):
        time.sleep(1000)

rank = int(os.environ.get("LOCAL_RANK", "0"))

class Failing(SILog):
    def __init__(self, rank, way, **options):
        super().__init__(**options)
        self.rank, self.way = rank, way
        open(f"{os.getpid()}.pid", "w").close()
        if globals()["rank"] == 0:
            atexit.register(time.sleep, 7)
        if way == "setup" and globals()["rank"] == rank:
            raise ArithmeticError("no room")
        self.waiting = Waiting()

    def forward(self, *maps):
        if torch.distributed.get_rank() == self.rank:
            if self.way == "data":
                raise DataError("image 17 cannot be read")
            if self.way == "bug":
                raise ZeroDivisionError("a mistake")
            if self.way == "exit":
                os._exit(3)
            if self.way in SIGNALS:
                os.kill(os.getpid(), SIGNALS[self.way])
        return super().forward(*maps)

SIGNALS = {"kill": signal.SIGKILL, "fault": signal.SIGSEGV}
"""


def beside(folder):
    """Python's search path for modules, with one more folder."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


KILLED = "error: process 1 of the training was killed by signal"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "way", "status", "said"),
    [
        (0, "data", 2, "error: image 17 cannot be read"),
        (0, "bug", 1, "ZeroDivisionError: a mistake"),
        (1, "data", 2, "error: image 17 cannot be read"),
        (1, "bug", 1, "ZeroDivisionError: a mistake"),
        (1, "exit", 1, "error: process 1 of the training ended with status 3"),
        (1, "kill", 1, f"{KILLED} 9 (SIGKILL), often the kernel's out-of-memory killer"),
        (1, "fault", 1, f"{KILLED} 11 (SIGSEGV)"),
        (1, "setup", 1, "ArithmeticError: no room"),
    ],
)
def test_a_process_fails(rank, way, status, said, program, tiny, tmp_path, monkeypatch):
    (tmp_path / "failing_loss.py").write_text(LOSS)
    monkeypatch.setenv("PYTHONPATH", beside(tmp_path))
    overrides = [o for o in tiny if not o.startswith("trainer.accelerator")]
    done = program(
        "sa2depth.train",
        *(*overrides, "trainer=ddp_sim", "hydra.run.dir=out", "loss._target_=failing_loss.Failing"),
        *(f"+loss.rank={rank}", f"+loss.way={way}"),
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == status, done.stderr[-3000:]
    assert said in done.stderr
    if rank == 0:
        assert "peer" not in done.stderr  # there is no message about the other process's lost connection
    else:
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: process 1 of the training ")
        assert way in ("kill", "fault") or last.endswith("see what it wrote above")
    assert_none_runs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["first", "second"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_of_two_processes_ends(sent, receiver, tiny, tmp_path, monkeypatch):
    (tmp_path / "counted_loss.py").write_text(LOSS)
    overrides = [o for o in tiny if not o.startswith(("trainer.accelerator", "trainer.max_epochs"))]
    command = [sys.executable, "-m", "sa2depth.train", *overrides, "trainer=ddp_sim", "hydra.run.dir=out"]
    command += ["trainer.max_epochs=10000", "+loss.rank=2", "+loss.way=none"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    process = subprocess.Popen(
        [*command, "loss._target_=counted_loss.Failing"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "out/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        second = next(p for f in tmp_path.glob("*.pid") if (p := int(f.stem)) != process.pid)
        os.kill(process.pid if receiver == "first" else second, sent)
        said = process.communicate(timeout=60)[1]
        assert_none_runs(tmp_path)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if receiver == "first":
        assert process.returncode == 128 + sent, said[-3000:]
        assert said.splitlines()[-1].startswith("interrupted: resume=")
    elif (
        sent == signal.SIGINT
    ):  # a terminal sends it to all processes; it does not matter if the second receives it first
        assert process.returncode == 130
        assert said.splitlines()[-1] == "interrupted"
    else:
        assert process.returncode == 1
        assert said.splitlines()[-1].startswith("error: process 1 of the training ended with status ")


def assert_none_runs(folder):
    processes = [int(file.stem) for file in folder.glob("*.pid")]
    assert len(processes) == 2
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(runs, processes)):
        time.sleep(0.1)
    assert not any(map(runs, processes))


def runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # a zombie: it has ended, but its status was not read yet
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


class Process:
    def __init__(self, code):
        self.code, self.killed = code, False

    def poll(self):
        return self.code

    def kill(self):
        self.killed = True


def trainer(*processes, folder=None):
    return SimpleNamespace(
        strategy=SimpleNamespace(launcher=SimpleNamespace(procs=list(processes))),
        checkpoint_callbacks=[SimpleNamespace(), SimpleNamespace(dirpath=folder)],
        is_global_zero=True,
        world_size=1,
    )


@pytest.mark.parametrize("error", [SystemExit(3), DataError("bad"), RuntimeError("shapes differ")])
def test_the_first_error_is_the_one_that_is_raised(error):
    others = Process(None), Process(1)
    with pytest.raises(type(error)) as caught, ending_together(trainer(*others)):
        raise error
    assert caught.value is error
    assert all(process.killed for process in others)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (-11, 1, "was killed by signal 11 (SIGSEGV)"),
        (2, 2, "ended with status 2: see"),
        (1, 1, "ended with status 1: see"),
    ],
)
def test_a_lost_connection_names_the_process_that_was_lost(code, status, words, capsys):
    lost = RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")
    with (
        pytest.raises((UserError, SystemExit)) as caught,
        ending_together(trainer(Process(None), Process(code))),
    ):
        raise lost
    said = capsys.readouterr().err
    if status == 2:
        said = str(caught.value)  # the code that catches it prints it
    else:
        assert caught.value.code == 1
    assert f"process 2 of the training {words}" in said


def test_a_lost_connection_whose_process_still_runs():
    lost = RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="gloo"), ending_together(trainer(Process(None))):
        raise lost
    assert 1 < time.monotonic() - start < 60


def after_ctrl_c():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904 - as Lightning does


def sigterm():
    raise SIGTERMException


def ctrl_c_elsewhere():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("way", "status"), [(after_ctrl_c, 130), (ctrl_c_elsewhere, 130), (sigterm, 143)])
def test_an_interrupted_run_says_how_to_go_on(way, status, tmp_path, capsys):
    other = Process(None)
    for advice in ("no checkpoint was written yet", f"resume={tmp_path}/last.ckpt continues from there"):
        with pytest.raises(SystemExit) as caught, ending_together(trainer(other, folder=str(tmp_path))):
            way()
        assert caught.value.code == status
        assert other.killed
        assert capsys.readouterr().err == f"interrupted: {advice}\n"
        (tmp_path / "last.ckpt").touch()
    with pytest.raises(SystemExit), ending_together(trainer()):
        way()
    assert capsys.readouterr().err == "interrupted\n"  # an evaluation keeps no checkpoints


@pytest.mark.parametrize("way", ["well", "failing"])
def test_a_process_that_fails_after_the_last_step(way, capsys):
    with suppress(SystemExit), ending_together(trainer(Process(5 if way == "failing" else 0))):
        each_on_its_own()
    failed = "error: process 1 of the training ended with status 5 after the last step: "
    expected = "" if way == "well" else f"{failed}the results are complete\n"
    assert capsys.readouterr().err == expected


def test_one_process_has_nothing_to_end():
    alone = SimpleNamespace(strategy=SimpleNamespace(launcher=None), world_size=1)
    with ending_together(alone):
        pass
    with pytest.raises(RuntimeError, match="gloo"), ending_together(alone):
        raise RuntimeError("gloo")
