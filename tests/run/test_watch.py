"""The thread that ends the first of several processes with a message and a status, wherever it waits."""

import queue
import subprocess
import sys
import time

import pytest

from sa2depth.run import watch
from sa2depth.run.watch import Watch, end_with_parent, first_failure, how, status_of

pytestmark = pytest.mark.slow


class Child:
    def __init__(self, *codes):
        self.codes, self.killed = list(codes), False

    def poll(self):
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def kill(self):
        self.killed = True


def watching(*children, patience_s=0.0, **options):
    left = []
    made = Watch(lambda: children, patience_s, left.append)
    made.start()
    return made, left


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "process 2 of the training ended with status 3"),
        (-9, "was killed by signal 9 (SIGKILL), often the kernel's out-of-memory killer"),
        (-11, "was killed by signal 11 (SIGSEGV)"),
        (-1000, "was killed by signal 1000"),
    ],
)
def test_says_which_process_failed_and_how(status, words):
    assert how(2, status).endswith(words)


def test_the_status_is_2_only_for_an_error_that_the_user_can_fix():
    assert [status_of(status) for status in (1, 2, 3, -9)] == [1, 2, 1, 1]


@pytest.mark.parametrize(("status", "left_with"), [(3, 1), (2, 2), (-9, 1)])
def test_a_failure_that_the_main_thread_does_not_notice(status, left_with, capsys):
    others = Child(None), Child(None, None, status), Child(None)
    made, left = watching(*others)
    made._thread.join(20)
    assert left == [left_with]
    assert all(child.killed for child in others)
    assert f"error: {how(2, status)}" in capsys.readouterr().err


def test_a_failure_that_the_main_thread_notices_is_its_own_matter(capsys):
    made, left = watching(Child(3), patience_s=60)
    time.sleep(0.5)
    made.stop()
    made._thread.join(20)
    assert (left, capsys.readouterr().err) == ([], "")


def test_an_error_of_the_main_thread_is_not_lost_where_its_clean_up_waits_for_ever(monkeypatch, capsys):
    monkeypatch.setattr(watch, "_LATEST_S", 0.1)
    made, left = watching(Child(1))
    made.notice(ZeroDivisionError("the first one's"))
    made._thread.join(20)
    assert left == [1]
    assert "ZeroDivisionError: the first one's" in capsys.readouterr().err


def test_waits_for_the_others_at_the_end():
    late = Child(None, None, None, 0)
    made, left = watching(late)
    made.stop()
    assert made.wait() is None
    made, left = watching(hanging := Child(None), Child(5))
    made.stop()
    assert made.wait(limit_s=0.1) == (2, 5)
    assert hanging.killed
    assert left == []


def test_the_first_failure_has_a_rank():
    assert first_failure([Child(0), Child(None), Child(7), Child(-9)]) == (3, 7)
    assert first_failure([Child(0), Child(None)]) is None
    assert first_failure([]) is None


BLOCKED = """
import ctypes, signal, subprocess, sys
from sa2depth.run.watch import Watch
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
children = []
Watch(lambda: children, patience_s=0.2).start()
children.append(subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]))
children.append(subprocess.Popen([sys.executable, "-c", "import time; print('second', flush=True); time.sleep(300)"]))
ctypes.CDLL(None).sleep(300)  # as a collective that never ends
"""


def test_a_first_process_that_is_blocked_in_c_ends_with_a_message():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=200, check=False
    )
    assert time.monotonic() - start < 150  # the children keep its pipes open: all are gone
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: process 1 of the training was killed by signal 9 (SIGKILL), often the kernel's out-of-memory killer"
    )


def test_a_process_whose_first_one_is_gone_ends(monkeypatch, capsys):
    parents, left = iter([7, 7, 1]), []
    monkeypatch.setattr(watch.os, "getppid", lambda: next(parents, 1))
    monkeypatch.setattr(watch.time, "sleep", lambda _: None)
    end_with_parent(left.append)
    for thread in watch.threading.enumerate():
        if thread.name == "sa2depth-parent":
            thread.join(20)
    assert left == [1]
    assert "the first process of the training is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "ours"), [(2, 2), (1, 1), (3, 1), (-9, 1), (-2, 130), (130, 130), (-15, 1), (143, 1)]
)
def test_an_interrupted_process_is_no_failure_of_its_own(status, ours):
    assert watch.status_of(status) == ours


def test_a_process_started_by_another_run_is_first_for_its_own(monkeypatch):
    monkeypatch.setenv("SA2DEPTH_FIRST_PROCESS", "1")
    watch.be_first()
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "still here"), done.stderr


CHILD = """
import time
from sa2depth.run.watch import end_with_parent

end_with_parent()
time.sleep(2)
print("still here")
"""


def test_a_process_whose_first_one_went_while_it_was_loading_ends(monkeypatch):
    first = subprocess.Popen([sys.executable, "-c", ""])
    first.wait()
    monkeypatch.setenv("SA2DEPTH_FIRST_PROCESS", str(first.pid))
    left = queue.Queue()
    watch.end_with_parent(left.put)
    assert left.get(timeout=10) == 1
