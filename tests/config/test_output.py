"""A run survives its standard output."""

import io
import logging
import os
import subprocess
import sys

from sa2depth.config.output import PatientStream, patient_output

TALKS = """
import sys, time
from rich.console import Console
from sa2depth.config.output import patient_output
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
        "note: standard output takes nothing more (Broken pipe): the run goes on, its log is in its folder\nalive\n"
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
