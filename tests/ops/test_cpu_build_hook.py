"""What installing does about the CPU library; hatchling itself is only needed at install and stood in for here."""

import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Generic, TypeVar

import pytest

import sa2depth
from sa2depth.ops.runtime.cpp import build as builder

ROOT = Path(sa2depth.__file__).parents[2]
PACKAGE = Path("src/sa2depth/ops/runtime/cpp")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "hatch_build.py").is_file(), reason="not a checkout"),
    pytest.mark.slow,
]


class BuildHookInterface(Generic[TypeVar("Configuration")]):
    """As much of hatchling's class as the hook relies on."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function: runs the hook on a copy of what it needs; returns the lines it said and the build data."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = BuildHookInterface
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.delenv(builder.SWITCH, raising=False)
    spec = importlib.util.spec_from_file_location("hatch_build_under_test", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / PACKAGE).mkdir(parents=True)
    build = (ROOT / PACKAGE / "build.py").read_text()
    (tmp_path / PACKAGE / "build.py").write_text(build.replace('"-O3"', '"-O0"'))  # sooner done
    shutil.copytree(ROOT / "csrc" / "cpu", tmp_path / "csrc" / "cpu")

    def run(version="standard", target="wheel"):
        lines, data = [], {"artifacts": [], "pure_python": True}
        hook = module.CpuLibraryHook()
        hook.root, hook.target_name = str(tmp_path), target
        hook.app = SimpleNamespace(display_warning=lines.append)
        hook.initialize(version, data)
        return lines, data

    return run


@pytest.fixture
def library(tmp_path):
    return tmp_path / PACKAGE / builder.LIBRARY


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("version", ["standard", "editable"])
def test_with_a_compiler_the_wheel_holds_the_library_and_is_tagged_for_the_platform(run, library, version):
    lines, data = run(version)
    assert lines == []
    assert library.is_file()
    assert data["artifacts"] == [(PACKAGE / builder.LIBRARY).as_posix()]
    assert data["pure_python"] is False
    interpreter, abi, platform = data["tag"].split("-")
    assert (interpreter, abi) == ("py3", "none")
    assert platform not in {"", "any"}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CXX", "no-such-compiler", "there is no C++ compiler"),
        ("CXX", "false", "false failed"),
        (builder.SWITCH, "0", f"{builder.SWITCH}=0"),
    ],
)
def test_without_one_the_wheel_is_pure_and_one_line_says_why(
    run, library, monkeypatch, variable, value, said
):
    monkeypatch.setenv(variable, value)
    lines, data = run()
    assert len(lines) == 1
    assert said in lines[0]
    assert "plain torch" in lines[0]
    assert data == {"artifacts": [], "pure_python": True}
    assert not library.exists()


def test_an_editable_installation_without_the_library_removes_the_earlier_one(run, library, monkeypatch):
    library.write_bytes(b"of an earlier installation")
    monkeypatch.setenv(builder.SWITCH, "0")
    run()
    assert library.exists()
    run("editable")
    assert not library.exists()


def test_a_source_distribution_holds_no_library(run, library):
    assert run(target="sdist") == ([], {"artifacts": [], "pure_python": True})
    assert not library.exists()


def test_the_project_file_asks_for_the_hook_and_ships_what_it_needs():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["hooks"]["custom"]["path"] == "hatch_build.py"
    assert {"hatch_build.py", "csrc"} <= set(targets["sdist"]["include"])
    assert "*.so" in (ROOT / ".gitignore").read_text().split()
