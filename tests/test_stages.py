import contextlib
import gc
import io
import os
import subprocess
import sys
import threading
import time

import pytest

from sa2depth import stages
from sa2depth.stages import Stages, loading, run_stages, seconds_so_far, stage, tell


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(stages.time, "perf_counter", lambda: self.now)

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    """Every stage counts as long at once."""
    for name in ("LONG_S", "_BAR_AFTER_S"):
        monkeypatch.setattr(stages, name, 0.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_until(found, seconds=10.0):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_seconds_of_stages_inside_one_another_add_up_to_the_total(clock):
    with run_stages(shown=False) as run:
        with stage("fit"):
            clock.wait(5)
            for _ in range(2):
                with stage("validation"):
                    clock.wait(2)
            clock.wait(1)
        clock.wait(0.5)
        with stage("test"):
            clock.wait(3)
            assert seconds_so_far()["test"] == 3  # also while it lasts
    expected = {"fit": 6, "validation": 4, "test": 3, "rest": 0.5, "total": 13.5}
    assert run.seconds() == expected
    assert list(run.seconds()) == list(expected)
    assert seconds_so_far() == {}
    assert tell(expected) == "fit 6.0 s, validation 4.0 s, test 3.0 s, rest 0.5 s; total 13.5 s"
    assert tell({"tables": 0.04, "rest": 0.0, "total": 0.04}) == "total 0.0 s"


def test_a_stage_may_end_before_its_context(clock):
    with Stages(shown=False) as run, stage("set-up") as set_up:
        clock.wait(2)
        set_up.end()
        clock.wait(7)
        with stage("test"):
            clock.wait(1)
    assert run.seconds() == {"set-up": 2, "test": 1, "rest": 7, "total": 10}


def test_a_failure_ends_the_stages_that_it_leaves(clock):
    with Stages(shown=False) as run:
        with contextlib.suppress(KeyError), stage("fit"):
            inner = stage("validation")
            inner.__enter__()
            clock.wait(2)
            raise KeyError
        with stage("test"):
            clock.wait(1)
    assert run.seconds() == {"fit": 0, "validation": 2, "test": 1, "rest": 0, "total": 3}


def test_other_threads_do_not_count(clock):
    with Stages(shown=False) as run, stage("test"):

        def work():
            with stage("kernels"):
                clock.wait(4)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert run.seconds() == {"test": 4, "rest": 0, "total": 4}


def test_a_long_stage_leaves_lines_where_there_is_no_terminal(quick, capsys):
    said = ""
    with stage("baseline", 1500) as progress:
        progress.advance(1200)

        def found():
            nonlocal said
            said += capsys.readouterr().err
            return "so far" in said

        wait_until(found)
    said += capsys.readouterr().err
    first, last = said.splitlines()
    assert first.startswith("baseline: ")
    assert first.endswith(" s so far")
    assert last.startswith("baseline: ")
    assert last.endswith(" s")


def test_lines_say_how_far_a_stage_is():
    progress = stages.Progress("scoring", 1500, lambda: None)
    progress.advance()
    progress.advance(1200)
    assert str(progress) == "scoring: 1,201 of 1,500,"
    assert str(stages.Progress("fit", None, lambda: None)) == "fit:"


def test_a_short_stage_leaves_nothing(capsys):
    with stage("tables", 3) as progress:
        progress.advance(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("hidden", ["stage", "process"])
def test_hidden_stages_leave_nothing(hidden, quick, capsys):
    with Stages(shown=hidden != "process"), stage("test", shown=hidden != "stage"):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_that_goes(quick, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with stage("baseline", 1500) as progress:
        progress.advance(1200)
        wait_until(lambda: "1200/1500" in terminal.getvalue())
    assert "baseline" in terminal.getvalue()
    assert "so far" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # its line is erased


def test_one_bar_at_a_time(quick, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with stage("set-up"):
        wait_until(lambda: "set-up" in terminal.getvalue())
        with stage("compiling"):
            wait_until(lambda: "compiling" in terminal.getvalue())
            drawn = terminal.getvalue().rpartition("set-up")[2]
            assert "\x1b[2K" in drawn.partition("compiling")[0]  # erased before
        terminal.truncate(0)
        wait_until(lambda: "set-up" in terminal.getvalue())


def test_beside_the_bar_of_another_program_a_terminal_gets_lines(quick, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with stage("test", shown=False), stage("compiling CUDA kernels"):
        wait_until(lambda: "so far" in terminal.getvalue())
    assert terminal.getvalue().startswith("compiling CUDA kernels: ")
    assert "\x1b" not in terminal.getvalue()


def test_a_stream_that_cannot_be_written_is_no_failure(quick, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Broken()))
    with stage("baseline"):
        time.sleep(0.05)


class Broken(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        raise BrokenPipeError


def test_only_the_program_itself_counts_its_start(monkeypatch):
    with loading("libraries", command=False):
        pass
    assert "start" not in run_stages().seconds()
    monkeypatch.setattr(stages, "_process_start", lambda: time.perf_counter() - 40)
    with loading("libraries", command=True):
        pass
    first, second = run_stages(), run_stages()
    assert 40 <= first.seconds()["start"] < 60
    assert "start" not in second.seconds()  # the second job of a sweep


def test_what_a_program_loads_is_never_searched_for_garbage():
    frozen = gc.get_freeze_count()
    with loading("libraries", command=False):
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    try:
        with contextlib.suppress(ImportError), loading("libraries", command=True):
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled()
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
        run_stages()  # forgets the start of this process


def test_the_start_of_the_process_is_found():
    code = (
        "import time; time.sleep(0.5); from sa2depth import stages; "
        "print(time.perf_counter() - stages._process_start())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    age = float(done.stdout)
    assert age > (0.5 if sys.platform == "linux" else 0)


# Ends a program when it first imports PyTorch, and prints the names of the running stages.
AT_TORCH = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            stages = sys.modules["sa2depth.stages"]
            os.write(1, ",".join(display._progress.name for display in stages._displays).encode())
            os._exit(7)

sys.meta_path.insert(0, Finder())
"""
COMMANDS = [
    *("doctor", "bench", "data show synthetic", "data speed synthetic"),
    *("predict . -o out -c none", "convert none.pth out.safetensors", "report none"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_the_stage_in_which_it_loads_pytorch(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_TORCH)
    (tmp_path / "a.png").touch()
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "sa2depth", *command.split()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "loading PyTorch"), done.stderr
