"""Fixtures of the operators' tests."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sa2depth
from sa2depth.ops import choice as asked
from sa2depth.resources import csrc_dir

EMULATOR = Path(__file__).parent / "emulator"


@pytest.fixture(autouse=True)
def choice(monkeypatch):
    """Tests of the operators choose back ends themselves, whatever ``SA2DEPTH_OPS`` says for the suite."""
    monkeypatch.setattr(asked, "_choice", "auto")


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
def emulator_libraries(tmp_path_factory):
    """A function: a kernel source with its macros to a library that runs it on the CPU, built once."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulator with")
    folder, built = tmp_path_factory.mktemp("emulator"), {}

    def build(source):
        if source not in built:
            path = csrc_dir() / source.path
            target = folder / f"{path.parent.name}_{path.stem}{len(built)}.so"
            macros = [f"-D{name}={value}" for name, value in source.macros]
            macros += [f'-DKERNELS="{path}"', f"-DEMULATE_{path.stem.upper()}"]
            flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{EMULATOR}", *macros]
            harness = EMULATOR / f"{path.parent.name}.cpp"
            subprocess.run([compiler, *flags, str(harness), "-o", str(target)], check=True)
            built[source] = ctypes.CDLL(str(target))
        return built[source]

    return build


@pytest.fixture
def emulate(emulator_libraries, monkeypatch):
    """A function: the launches of a module run on the CPU from now on; returns their list, filled as they come.

    Memory that nobody wrote shows up as NaN.
    """

    def poisoned(make):
        return lambda *a, **k: t.fill_(torch.nan) if (t := make(*a, **k)).is_floating_point() else t

    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))

    def start(module, note=lambda source, grid: grid, alignment=1):
        launches = []

        def launch(source, kernel, arguments, *, grid, threads, device, shared_bytes=0):
            tensors = [a for a in arguments if isinstance(a, Tensor)]
            assert all(t.is_contiguous() and t.data_ptr() % alignment == 0 for t in tensors)
            values = [
                ctypes.c_void_p(a.data_ptr() if isinstance(a, Tensor) else 0)
                if a is None or isinstance(a, Tensor)
                else a
                for a in arguments
            ]
            addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            status = emulator_libraries(source).emulate(
                kernel.encode(), (ctypes.c_int * 3)(*grid), threads, shared_bytes, addresses
            )
            assert status == 0, f"the emulator does not know {kernel}"
            launches.append((kernel, note(source, grid)))

        monkeypatch.setattr(module, "launch", launch)
        return launches

    return start
