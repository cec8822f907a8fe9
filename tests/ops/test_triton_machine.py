"""Where Triton runs, and what is said where it does not."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import layer_norm, trust, use_backend
from sa2depth.ops.dispatch import choose
from sa2depth.ops.registry import OPERATORS, Backend
from sa2depth.ops.runtime import notices
from sa2depth.ops.runtime import triton as machine

pytest.importorskip("triton")

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def asked():
    with use_backend("triton"):
        yield


class OnDevice:
    """As much of a CUDA tensor as the choice looks at."""

    device, dtype = CUDA, torch.bfloat16


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A function: a GPU of this compute capability, with everything that Triton needs."""
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A GPU")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr("shutil.which", lambda name: name)

    def of(major, minor):
        machine._lacks.cache_clear()
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (major, minor))

    yield of
    machine._lacks.cache_clear()


def test_old_gpus_have_no_bfloat16(gpu):
    gpu(7, 5)
    assert machine.why_not("an_operator", input=OnDevice()) == "A GPU has no bfloat16"
    gpu(8, 0)
    assert machine.why_not("an_operator", input=OnDevice()) == ""


def test_the_machine_is_looked_at_once(gpu, monkeypatch):
    gpu(8, 0)
    looks = []
    monkeypatch.setattr("shutil.which", lambda name: looks.append(name) or name)
    for operator in ("an_operator", "another", "an_operator"):
        assert machine.why_not(operator, input=OnDevice()) == ""
    assert looks == ["cc"]


def test_a_cache_that_cannot_be_written_is_named_once(gpu, monkeypatch, tmp_path, caplog):
    gpu(8, 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert "set TRITON_CACHE_DIR" in machine.why_not("an_operator", input=OnDevice())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "file") in record.message


@pytest.mark.parametrize("variable", ["TRITON_HOME", "HOME"])
def test_the_cache_lies_where_triton_has_it(gpu, monkeypatch, tmp_path, variable):
    gpu(8, 0)
    (tmp_path / ".triton").touch()
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv(variable, str(tmp_path))
    assert str(tmp_path / ".triton") in machine.why_unavailable(CUDA)


def test_a_user_without_a_home(gpu, monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    gpu(8, 0)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.delenv("TRITON_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert machine.why_unavailable(CUDA) == ""
    (tmp_path / "~").touch()
    assert f"Triton cannot write to {tmp_path / '~'}" in machine.why_unavailable(CUDA)


def test_on_a_cpu_only_its_interpreter_runs(monkeypatch):
    x, weight = torch.randn(2, 8), torch.ones(8)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="the input is on cpu"):
        layer_norm(x, weight, weight)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(trust, "_tested", lambda *key: pytest.fail(f"{key} was tested"))
    with use_backend("auto"):
        torch.testing.assert_close(layer_norm(x, weight, weight), torch.nn.functional.layer_norm(x, (8,)) + 1)


def test_tensors_elsewhere_are_refused():
    x = torch.randn(2, 8)
    assert machine.why_not("an_operator", input=x, weight=x.to("meta")) == "the weight is on meta"
    assert machine.why_not("an_operator", input=x.double()) == "the input is torch.float64"


def test_a_triton_that_fails_is_left_alone_with_one_line(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(trust, "_known", {})
    monkeypatch.setattr(trust, "_read", lambda note: None)
    monkeypatch.setattr(trust, "_note", lambda *key: tmp_path / "note")

    def fails(operator, backend, device):
        raise RuntimeError("libcuda.so cannot be found")

    monkeypatch.setattr(trust, "check", fails)
    oracle = Backend("torch", lambda x: "torch")

    def chosen(name):
        operator = replace(OPERATORS["dcnv3"], backends=(Backend(name, lambda x: name), oracle))
        return choose(operator, SimpleNamespace(device=CUDA))(None)

    with use_backend("auto"):
        for _ in range(2):
            assert chosen("triton") == "torch"
        (record,) = caplog.records
        assert "libcuda.so cannot be found" in record.message
        with pytest.raises(RuntimeError, match="libcuda"):
            chosen("cuda")
    assert not list(tmp_path.iterdir())


def test_what_it_is_trusted_for_depends_on_its_sources_and_version(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(machine, "versions", lambda: ("3.6.0", 13000))
    first = trust._circumstances("dcnv3", "triton", CUDA)
    assert first == trust._circumstances("dcnv3", "triton", CUDA)
    monkeypatch.setattr(machine, "versions", lambda: ("3.7.0", 13000))
    second = trust._circumstances("dcnv3", "triton", CUDA)
    (tmp_path / "triton_kernels.py").write_text("changed")
    operator = OPERATORS["dcnv3"]
    changed = replace(operator.backend("triton"), sources=(tmp_path / "triton_kernels.py",))
    monkeypatch.setitem(OPERATORS, "dcnv3", replace(operator, backends=(changed,)))
    assert len({first, second, trust._circumstances("dcnv3", "triton", CUDA)}) == 3
