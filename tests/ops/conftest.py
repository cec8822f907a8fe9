"""Fixtures of the operators' tests."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sa2depth
from sa2depth.ops import choice as ops_choice

pytest.register_assert_rewrite("ops.claims", "ops.gpu_claims", "ops.operator_tester", "ops.ways")

from ops.operator_tester import OperatorTester  # noqa: E402
from ops.ways import builder, running  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None and issubclass(metafunc.cls, OperatorTester):
        metafunc.cls.expand(metafunc)


@pytest.fixture(autouse=True)
def choice(monkeypatch):
    """Tests of the operators choose back ends themselves, whatever ``SA2DEPTH_OPS`` says for the suite."""
    monkeypatch.setattr(ops_choice, "_choice", "auto")


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


@pytest.fixture(scope="session")
def emulator(pytestconfig):
    """A function: a CUDA source to a library that runs it on the CPU; libraries are kept between runs of pytest."""
    return builder(pytestconfig.cache.mkdir("emulator"))


@pytest.fixture
def way(request, monkeypatch):
    """One way to run an operator, whose context holds during the test: see `ways.Way`."""
    way = request.param
    build = request.getfixturevalue("emulator") if way.kind == "emulated" else None
    with running(way, monkeypatch, build):
        request.instance.prepare(way, monkeypatch)
        yield way
    way.launches.clear()


@pytest.fixture
def needs_nvrtc():
    """Skip where torch brought no compiler of CUDA."""
    pytest.importorskip("cuda.core")
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"no NVRTC: {error}")
