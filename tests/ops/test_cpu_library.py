"""The CPU library itself: its mathematical functions, code paths, refusals, and how it is built."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import cpu, dcnv3, use_backend
from sa2depth.ops.runtime import notices
from sa2depth.ops.runtime.cpp import build as builder
from sa2depth.ops.runtime.cpp import inputs, library
from sa2depth.resources import csrc_dir

pytestmark = pytest.mark.slow

SOURCES = csrc_dir() / "cpu"
needs_library = pytest.mark.skipif(bool(cpu.why_unavailable()), reason=cpu.why_unavailable())


def test_where_a_compiler_is_there_is_a_library():
    # all other tests of the library are skipped without it: that may not happen unnoticed
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    if compiler and os.environ.get("SA2DEPTH_BUILD_CPU") != "0":
        assert cpu.why_unavailable() == ""


def functions(x, path):
    """The library's exp of min(x, 0), softplus, logistic function and tanh."""
    loaded, _ = library._load()
    x = np.ascontiguousarray(x, dtype=np.float32)
    results = [np.full_like(x, np.nan) for _ in range(4)]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, *results)]
    count = ctypes.c_int64(x.size)
    assert loaded.sa2depth_functions(builder.PATHS.index(path), pointers[0], count, *pointers[1:]) == 0
    return results


@needs_library
@pytest.mark.parametrize("path", cpu.paths())
@pytest.mark.parametrize("count", [1, 3, 16, 17, 100_001])
def test_functions_are_accurate_to_float32(path, count):
    x = np.linspace(-80, 80, count, dtype=np.float32)
    exponential, softplus, sigmoid, tanh = functions(x, path)
    exact = x.astype(np.float64)
    for actual, expected, bound in (
        (exponential, np.exp(np.minimum(exact, 0)), 2.5e-7),
        (softplus, np.log1p(np.exp(-np.abs(exact))) + np.maximum(exact, 0), 4e-7),
        (sigmoid, 1 / (1 + np.exp(-exact)), 4e-7),
        (tanh, np.tanh(exact), 5e-7),
    ):
        error = np.abs(actual - expected) / np.maximum(np.abs(expected), 1e-35)
        assert error.max() < bound


@needs_library
@pytest.mark.parametrize("path", cpu.paths())
def test_exponential_has_no_bias_near_zero(path):
    """A recurrence multiplies thousands of such factors: an error of one sign would add up."""
    x = -np.geomspace(1e-6, 1e-2, 100_000).astype(np.float32)
    error = functions(x, path)[0] / np.exp(x.astype(np.float64)) - 1
    assert abs(error.mean()) < 2e-9


@needs_library
@pytest.mark.parametrize("path", cpu.paths())
def test_tanh_keeps_small_numbers(path):
    x = np.geomspace(1e-30, 1, 10_000).astype(np.float32) * np.float32([[1], [-1]])
    expected = np.tanh(x.astype(np.float64))
    assert np.max(np.abs(functions(x.ravel(), path)[3].reshape(x.shape) / expected - 1)) < 5e-7


@needs_library
@pytest.mark.parametrize("path", cpu.paths())
def test_functions_far_out(path):
    exponential, softplus, sigmoid, tanh = functions([-1e30, -200, 0, 200, 1e30], path)
    np.testing.assert_allclose(exponential, [0, 0, 1, 1, 1], atol=1e-37)
    np.testing.assert_allclose(softplus, [0, 0, np.log(2), 200, 1e30], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(sigmoid, [0, 0, 0.5, 1, 1], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(tanh, [-1, -1, 0, 1, 1], rtol=1e-6)


def arguments(dtype=torch.float32):
    x = torch.randn(1, 4, 5, 8, dtype=dtype)
    return x, torch.randn(1, 4, 5, 36, dtype=dtype), torch.rand(1, 4, 5, 18, dtype=dtype)


@needs_library
def test_every_path_of_the_machine_is_offered_and_the_best_is_used(monkeypatch):
    monkeypatch.delenv(library.PATH_VARIABLE, raising=False)
    assert cpu.paths()[0] == "portable"
    assert cpu.path() == cpu.paths()[-1]
    # the processor's own flags: ATEN_CPU_CAPABILITY bounds what PyTorch says of its capability
    assert ("avx2" in cpu.paths()) == torch.cpu._is_avx2_supported()
    assert ("avx512" in cpu.paths()) == torch.cpu._is_avx512_supported()


@needs_library
def test_a_path_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv(library.PATH_VARIABLE, "avx51")
    with pytest.raises(ConfigError, match="SA2DEPTH_CPU_PATH=avx51"):
        dcnv3(*arguments(), groups=2)
    # the library itself refuses too, should Python's list be wrong
    loaded, _ = library._load()
    assert loaded.sa2depth_functions(7, None, ctypes.c_int64(0), None, None, None, None) == 1


@needs_library
def test_float64_and_other_devices_stay_on_torch():
    with use_backend("cpu"):
        with pytest.raises(ConfigError, match="float64"):
            dcnv3(*arguments(torch.float64), groups=2)
        with pytest.raises(ConfigError, match="meta"):
            dcnv3(*(t.to("meta") for t in arguments()), groups=2)
    with pytest.raises(RuntimeError, match="float64"):
        library.call("dcnv3_forward", torch.zeros(1, dtype=torch.float64))


def test_without_the_library_torch_runs_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(library, "_load", lambda: (None, "there was no compiler"))
    monkeypatch.setattr(notices, "_said", set())
    with caplog.at_level(logging.WARNING):
        out = [dcnv3(*arguments(), groups=2) for _ in range(2)]
    assert out[0].isfinite().all()
    assert [r.message for r in caplog.records] == [
        "dcnv3 is slower here than it could be: there was no compiler"
    ]
    with use_backend("cpu"), pytest.raises(ConfigError, match="there was no compiler"):
        dcnv3(*arguments(), groups=2)
    with pytest.raises(RuntimeError, match="there was no compiler"):
        library.call("dcnv3_forward")
    assert inputs.why_not("dcnv3", torch.zeros(1)) == "there was no compiler"


POOL = """
import os, sys
import threadpoolctl, torch
from sa2depth.ops import dcnv3, use_backend

def runtimes():
    return sorted(p["filepath"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "openmp")

def count():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
a = torch.rand(1500, 1500)
for _ in range(3):
    a.sin().sum()
before, alone = runtimes(), count()
with use_backend("cpu"):
    out = dcnv3(torch.rand(1, 64, 64, 16), torch.rand(1, 64, 64, 18), torch.rand(1, 64, 64, 9), groups=1)
print(runtimes() == before, count() - alone)
"""


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_it_computes_in_pytorchs_pool_of_threads():
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", POOL], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "0"], "no runtime and no thread came with the library"
    assert cpu.pool() == "PyTorch's threads"


@needs_library
def test_it_links_no_openmp():
    """A runtime that it links may be another one than PyTorch's, whose wheels rename theirs: a second pool."""
    contents = cpu.library_file().read_bytes()
    for name in (b"libgomp", b"libomp", b"libiomp", b"GOMP_", b"__kmpc_"):
        assert name not in contents, name


@needs_library
def test_each_thread_takes_what_it_can(monkeypatch):
    loaded, _ = library._load()
    seen = []
    signature = ctypes.CFUNCTYPE(
        None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    )

    @signature
    def fork(function, data, threads, flags):
        seen.append((threads, flags))
        function(data)  # one thread out of three comes, and has to do all of it

    number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    loaded.sa2depth_cpu_use_pool(fork, number)
    try:
        torch.set_num_threads(3)
        with use_backend("cpu"):
            out = dcnv3(*arguments(), groups=2)
    finally:
        torch.set_num_threads(1)
        loaded.sa2depth_cpu_use_pool(*library._pool())
    assert seen == [(3, 0)]
    assert out.isfinite().all()
    assert (out != 0).any(dim=(0, 2, 3)).all(), "each row was computed"


class TestBuild:
    @pytest.fixture
    def load(self, tmp_path, monkeypatch):
        """A fresh look for the library in an empty folder."""
        monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
        return library._load.__wrapped__

    @pytest.fixture
    def quick(self, monkeypatch):
        """A library that is slow, but soon there."""
        monkeypatch.setattr(builder, "_FLAGS", [flag.replace("-O3", "-O0") for flag in builder._FLAGS])

    def test_no_library(self, load):
        assert load()[0] is None
        assert "installed without the CPU library" in load()[1]

    def test_a_broken_one(self, load, tmp_path):
        (tmp_path / builder.LIBRARY).write_bytes(b"no library")
        assert "cannot be loaded" in load()[1]

    @needs_library
    def test_an_outdated_one(self, load, quick, tmp_path, monkeypatch):
        monkeypatch.setattr(builder, "sources_version", lambda _: "older")
        builder.build(SOURCES, tmp_path)
        assert "another version" in load()[1]

    @needs_library
    def test_where_pytorch_has_no_openmp_it_has_threads_of_its_own(self, load, quick, tmp_path, monkeypatch):
        monkeypatch.setattr(library, "_POOL", ("no_such_function", "omp_get_thread_num"))
        assert cpu.pool() == "threads of its own"
        builder.build(SOURCES, tmp_path)
        loaded, reason = load()
        assert not reason
        assert not list(tmp_path.glob(".*"))
        input, offset, mask = (t.double() for t in arguments())
        shape = library.Dcnv3Shape(1, 4, 5, 4, 5, 2, 4, 3, 1, 1, 1, 0, 0, 54, 1.0)
        output = torch.empty(1, 4, 5, 8)
        tensors = [t.float() for t in (input, torch.cat((offset, mask), dim=-1))]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*tensors, output)]
        assert loaded.sa2depth_dcnv3_forward(0, ctypes.byref(shape), *pointers, 3) == 0
        torch.testing.assert_close(
            output.double(), dcnv3(input, offset, mask, groups=2), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize(
        ("compiler", "message"), [("no-such-one", "no C\\+\\+ compiler"), ("false", "failed")]
    )
    def test_a_missing_or_failing_compiler_is_named(self, compiler, message, tmp_path, monkeypatch):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(builder.BuildError, match=message):
            builder.build(SOURCES, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_compiler_error_is_quoted(self, tmp_path):
        sources, target = tmp_path / "sources", tmp_path / "target"
        sources.mkdir()
        target.mkdir()
        (sources / "kernels.cpp").write_text("#error this will not do\n")
        with pytest.raises(builder.BuildError, match="this will not do"):
            builder.build(sources, target)

    def test_the_builder_needs_no_torch(self):
        """At install neither PyTorch nor the package is there."""
        program = (
            "import importlib.util as u, sys; s = u.spec_from_file_location('b', sys.argv[1]); "
            "m = u.module_from_spec(s); s.loader.exec_module(m); assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-S", "-c", program, builder.__file__], check=True)

    @needs_library
    @pytest.mark.skipif(sys.platform != "linux", reason="reads symbols with nm")
    def test_no_inline_function_leaves_a_code_path(self, tmp_path, monkeypatch):
        """The linker keeps one copy of an inline function: one compiled for AVX-512 would crash other machines."""
        seen = []
        run = builder._run

        def spy(command):
            run(command)
            if "-c" in command and str(command[-1]).endswith(tuple(f"{p}.o" for p in builder.PATHS)):
                symbols = subprocess.run(["nm", str(command[-1])], capture_output=True, text=True, check=True)
                seen.append([line for line in symbols.stdout.splitlines() if line.split()[-2] in "uVvWw"])

        monkeypatch.setattr(builder, "_run", spy)
        builder.build(SOURCES, tmp_path)
        assert seen
        assert not any(seen)
