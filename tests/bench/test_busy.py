"""The benchmark beside other programs; its processes are faked, and the spinning ones run for a moment."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from sa2depth import threads
from sa2depth.bench import busy
from sa2depth.bench.busy import Figure, Setting, compare, spinning, thread_numbers
from sa2depth.cli import app
from sa2depth.errors import ConfigError

SETTING = Setting("nano", "training", (32, 32), 2, "2", 0.0)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda *_: 8)


def test_numbers_of_threads():
    assert thread_numbers("all,rest,free", 3) == ["8", "5", "free"]
    assert thread_numbers("1, 4,all,8", 1) == ["1", "4", "8"]
    for text in ("none", "0", "1,,2", "-3"):
        with pytest.raises(ConfigError, match=f"--threads {text}"):
            thread_numbers(text, 1)


def test_other_programs_end_with_the_measurement(monkeypatch):
    began, ended = [], []

    class Process:
        def __init__(self, command):
            began.append(command[-1])

        def kill(self):
            ended.append("killed")

        def wait(self):
            ended.append("gone")

    monkeypatch.setattr(busy.subprocess, "Popen", Process)
    stopped = spinning(2)
    with pytest.raises(KeyboardInterrupt), stopped:
        raise KeyboardInterrupt
    assert began == ["while True: pass"] * 2
    assert ended == ["killed", "gone"] * 2


def test_medians_in_turns(monkeypatch):
    order = []
    quiet, loaded = iter([30.0, 10.0, 20.0] * 3), iter([3.0, 1.0, 2.0] * 3)

    class Others:
        def __init__(self, count):
            order.append(count)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(busy, "spinning", Others)
    monkeypatch.setattr(busy, "_measured", lambda *_: next(loaded if order[-1] else quiet))
    figures = list(compare([SETTING], busy=4, rounds=3))
    assert order == [0, 4] * 9
    assert figures == [Figure("nano", "training", name, "2", 20.0, 2.0) for name in busy.WAITING]


@pytest.mark.parametrize("number", ["1", "free"])
@pytest.mark.parametrize("what", busy.WHAT)
def test_a_process_measures(monkeypatch, capsys, what, number):
    monkeypatch.setattr(busy, "_WARM_UP_S", 0.0)
    given = {"model": "nano", "what": what, "size": [32, 32], "batch": 2, "threads": number, "seconds": 0.0}
    monkeypatch.setattr(sys, "argv", ["busy", json.dumps(given)])
    before = torch.get_num_threads()
    busy.main()
    torch.set_num_threads(before)
    assert 0.1 < json.loads(capsys.readouterr().out)["images_per_s"] < 1e5


def test_a_process_gets_the_policy_and_its_failure_is_told(monkeypatch):
    seen = []

    def run(command, *, env, **_):
        seen.append(env)
        return subprocess.CompletedProcess(command, len(seen) - 1, '{"images_per_s": 5.0}', "no memory\n")

    monkeypatch.setattr(busy.subprocess, "run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert busy._measured(SETTING, {"GOMP_SPINCOUNT": "5"}) == 5.0
    assert seen[0]["GOMP_SPINCOUNT"] == "5"
    assert not {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"} & set(seen[0])
    with pytest.raises(ConfigError, match="nano, training, 2 threads: no memory"):
        busy._measured(SETTING, {})


def test_the_last_policy_is_that_of_the_package():
    assert busy.WAITING["sa2depth"] == threads.waiting(len(threads.cpus()))
    for variables in busy.WAITING.values():  # each of them keeps the package from setting its own policy
        assert set(variables) & set(threads._BY_HAND)


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch):
        def figures(settings, busy, rounds):
            for setting in settings:
                yield Figure(setting.model, setting.what, "sa2depth", setting.threads, 40.0, 30.0)

        monkeypatch.setattr(busy, "compare", figures)
        return lambda *options: CliRunner().invoke(app, ["bench", "--models", "nano", *options])

    def test_a_line_for_each(self, run, tmp_path):
        done = run("--busy", "2", "--size", "64x96", "--batch", "16", "--json", str(tmp_path / "busy.json"))
        assert done.exit_code == 0, done.output
        lines = [line.split() for line in done.output.splitlines() if "nano" in line]
        assert [line[1:3] for line in lines] == [
            [w, n] for w in ("inference", "training") for n in ("8", "6", "free")
        ]
        assert lines[0][-3:] == ["40.00", "30.00", "75%"]
        written = json.loads((tmp_path / "busy.json").read_text())
        assert (written["busy"], written["batch"], len(written["rows"])) == (2, 16, 6)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--busy", "8"), "8 usable cores"),
            (("--busy", "1", "--what", "parts"), "--what"),
            (("--busy", "1", "--threads", "many"), "--threads many"),
        ],
    )
    def test_refusals(self, run, options, words):
        done = run(*options)
        assert done.exit_code == 2
        assert words in done.output
