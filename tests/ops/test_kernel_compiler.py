"""Kernels are compiled by NVRTC and kept on disk; NVRTC needs no device, so this runs where torch brought it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sa2depth.ops.runtime import nvrtc as kernels
from sa2depth.ops.runtime.nvrtc import compiler, launcher

pytestmark = pytest.mark.slow

KERNEL = 'extern "C" __global__ void fill(float* x) { x[threadIdx.x] = VALUE; }\n'


def nvrtc_answers():
    if importlib.util.find_spec("cuda") is None:
        return False
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program  # noqa: F401

        return nvrtc.nvrtcVersion()[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS
    except (ImportError, RuntimeError, OSError):
        return False


needs_nvrtc = pytest.mark.skipif(not nvrtc_answers(), reason="no NVRTC: torch without CUDA")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SA2DEPTH_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "csrc" / "fill.cu"
    path.parent.mkdir()
    path.write_text(KERNEL)
    return path


@pytest.fixture
def compilations(monkeypatch):
    """What was really compiled."""
    calls, compile_one = [], compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *a: calls.append(a) or compile_one(*a))
    return calls


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SA2DEPTH_CACHE", "~/kernels")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernels.cache_dir() == tmp_path / "kernels"
    monkeypatch.delenv("SA2DEPTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernels.cache_dir() == tmp_path / "xdg" / "sa2depth" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernels.cache_dir() == tmp_path / ".cache" / "sa2depth" / "kernels"


@needs_nvrtc
def test_compiles_once(source, cache, compilations):
    code = kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    assert code.startswith(b"\x7fELF")
    assert kernels.compile_kernels(source, "sm_90", {"VALUE": 1}) == code
    assert len(compilations) == 1
    assert [file.name.split("-")[:2] for file in cache.iterdir()] == [["fill", "sm_90"]]


@needs_nvrtc
def test_whatever_changes_the_code_changes_the_file(source, cache, monkeypatch):
    kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    kernels.compile_kernels(source, "sm_90", {"VALUE": 2})
    kernels.compile_kernels(source, "sm_80", {"VALUE": 1})
    (source.parent / "included.cuh").write_text("// not even a kernel\n")
    kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    source.write_text(KERNEL.replace("fill", "pour"))
    kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    from cuda.bindings import nvrtc

    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, 99, 0))
    kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    assert len(list(cache.iterdir())) == 6


@needs_nvrtc
def test_a_folder_that_cannot_be_written(source, cache, compilations, caplog):
    cache.write_text("a file, where the folder should be")
    code = kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    assert code.startswith(b"\x7fELF")
    assert "every process compiles again; set SA2DEPTH_CACHE" in caplog.text
    assert kernels.compile_kernels(source, "sm_90", {"VALUE": 1}) == code
    assert len(compilations) == 2


@needs_nvrtc
def test_a_folder_that_can_only_be_read_still_serves(source, cache, compilations, caplog):
    code = kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    cache.chmod(0o500)
    try:
        assert kernels.compile_kernels(source, "sm_90", {"VALUE": 1}) == code
    finally:
        cache.chmod(0o700)
    assert len(compilations) == 1
    assert not caplog.records


@needs_nvrtc
@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"", lambda b: b[:50] + b"?" + b[51:]])
def test_a_damaged_file_is_compiled_anew(source, cache, compilations, caplog, damage):
    code = kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert kernels.compile_kernels(source, "sm_90", {"VALUE": 1}) == code
    assert len(compilations) == 2
    assert "is damaged" in caplog.text


@needs_nvrtc
def test_processes_at_once(source, cache):
    code = (
        "import sys; from pathlib import Path; from sa2depth.ops.runtime.nvrtc import compile_kernels\n"
        "print(len(compile_kernels(Path(sys.argv[1]), 'sm_90', {'VALUE': 1})))"
    )
    command = [sys.executable, "-c", code, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    answers = [process.communicate() for process in running]
    assert all(process.returncode == 0 for process in running), answers
    assert answers[0][0] == answers[1][0]
    (file,) = cache.iterdir()  # nothing temporary is left
    assert len(file.read_bytes()) == int(answers[0][0]) + 32


@needs_nvrtc
def test_errors_hold_the_compilers_log(source):
    source.write_text("int x;\n" + KERNEL.replace("x[", "nonsense["))
    with pytest.raises(kernels.CompileError) as error:
        kernels.compile_kernels(source, "sm_90", {"VALUE": 1})
    assert "fill.cu" in str(error.value)
    assert 'identifier "nonsense" is undefined' in str(error.value)


def test_no_compiler_no_kernels_and_a_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    device = torch.device("cuda", 0)
    assert "pip install cuda-core[cu13]" in launcher.why_unavailable.__wrapped__(device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in launcher.why_unavailable.__wrapped__(device)
    assert "not a CUDA device" in launcher.why_unavailable.__wrapped__(torch.device("cpu"))


def test_importing_the_operators_does_not_import_the_compiler(run_python):
    result = run_python("import sys, sa2depth.ops; print([m for m in sys.modules if m.startswith('cuda')])")
    assert result.stdout.strip() == "[]"


def test_tensors_elsewhere_are_refused():
    device = torch.device("cuda", 0)
    with pytest.raises(ValueError, match="a kernel on cuda:0 takes contiguous tensors there, not one on cpu"):
        launcher._value(torch.zeros(3), device)
    assert launcher._value(None, device) == 0


@needs_nvrtc
@pytest.mark.parametrize(
    ("capability", "driver", "reason"),
    [
        ((9, 0), 13000, ""),
        ((9, 0), 13020, ""),
        ((7, 5), 13000, "kernels need 8.0"),
        ((99, 0), 13000, "does not know cuda:0's architecture"),
        ((9, 0), 12080, r"is newer than the driver \(pip install cuda-core\[cu12\]\)"),
    ],
)
def test_what_the_device_driver_and_compiler_must_be(capability, driver, reason, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launcher, "versions", lambda: ((13, 0), driver))
    found = launcher.why_unavailable.__wrapped__(torch.device("cuda", 0))
    assert re.search(reason, found) if reason else not found


def test_a_user_without_a_home(monkeypatch, caplog):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SA2DEPTH_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    compiler._folder_of_this_process.cache_clear()
    folder = compiler.cache_dir()
    assert folder.is_dir()
    assert compiler.cache_dir() == folder
    assert [record.message.partition(":")[0] for record in caplog.records] == ["this user has no home folder"]
    compiler._folder_of_this_process.cache_clear()
