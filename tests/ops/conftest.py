"""Fixtures of the operators' tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sa2depth


@pytest.fixture
def run_python():
    """A function: runs code in a new interpreter that finds this sa2depth, with these environment variables."""

    def run(code, **environment):
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(sa2depth.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )

    return run
