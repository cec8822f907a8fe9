"""A run survives errors of its standard output."""

import io
import logging
import os
import subprocess
import sys

import pytest

from sa2depth.output import PatientStream, patient_output, quiet_pipes

TALKS = """
import sys, time
from rich.console import Console
from sa2depth.output import patient_output
with patient_output():
    for line in range(2000):
        Console().print(f"line {line} of {'x' * 50} ü")
print("alive", file=sys.stderr)
"""


def test_a_reader_that_goes_away_costs_one_line():
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "$0" | head -n 1', TALKS],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert done.stdout.startswith("line 0")
    assert done.stderr == (
        "note: standard output is closed (Broken pipe); the run continues, and its log is in its folder\nalive\n"
    )


def test_a_full_disk_under_standard_output_costs_one_line():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", TALKS],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
            timeout=200,
        )
    assert done.stderr.count("\n") == 2
    assert "(No space left on device)" in done.stderr


def test_letters_that_it_cannot_show():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", TALKS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert done.stdout.splitlines()[0].endswith(r"\xfc")


def test_everything_is_as_before_afterwards(monkeypatch):
    before = sys.stdout, logging.raiseExceptions
    with patient_output():
        assert logging.raiseExceptions is False
    assert (sys.stdout, logging.raiseExceptions) == before
    monkeypatch.setattr(sys, "stdout", None)  # closed
    with patient_output():
        assert sys.stdout is None


def test_passes_on_what_it_is_told():
    stream = io.StringIO()
    patient = PatientStream(stream)
    assert patient.write("ab") == 2
    patient.flush()
    assert (stream.getvalue(), patient.isatty()) == ("ab", False)


COMMAND = """
import sys
from pathlib import Path
from sa2depth.cli import app, main

@app.command()
def work(lines: int) -> None:
    for line in range(lines):
        print(f"line {line} of {'x' * 50}")
        print("a warning" * 10, file=sys.stderr)
    Path("done").touch()

main(sys.argv[1:])
"""


@pytest.mark.parametrize("lines", [1, 5000])  # in the buffer until the end, or not
@pytest.mark.parametrize("both", ["", "2>&1"])
def test_a_command_works_to_its_end_when_its_reader_goes_away(lines, both, tmp_path):
    script = f'"{sys.executable}" -c "$0" work {lines} {both} | {{ true <&0; exec 0<&-; }}; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script, COMMAND], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=100
    )
    assert done.stdout == "0\n"
    assert done.stderr.replace("a warning", "").strip() == ""
    assert (tmp_path / "done").exists()


def test_the_help_of_a_command_ends_quietly():
    script = f'"{sys.executable}" -m sa2depth predict --help | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_a_full_disk_under_the_output_of_a_command_is_its_failure():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "sa2depth", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=100,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: a file cannot be written (No space left on device)")


def test_quiet_pipes_leaves_everything_as_before(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # closed
    before = sys.stdout, sys.stderr
    with quiet_pipes():
        assert sys.stdout is None
    assert (sys.stdout, sys.stderr) == before
