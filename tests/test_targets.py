"""Classes by name: errors for wrong names, and lists of trusted names."""

import sys

import pytest

from sa2depth.errors import ConfigError
from sa2depth.targets import covered, find, home, named, parse_trusted


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package in the current folder, where ``python -m`` finds it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    files = {
        "__init__": "",
        "good": "class Encoder:\n    def run(self): ...\n",
        "missing": "import json\nimport not_installed_anywhere\n",
        "broken": "x = 1\nraise RuntimeError('no licence')\n",
        "syntax": "def f(:\n",
        "name": "from json import no_such_name\n",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_classes_methods_and_functions_are_found(package):
    assert home(find("mine.good.Encoder")) == "mine.good.Encoder"
    assert home(find("mine.good.Encoder.run")) == "mine.good.Encoder.run"
    assert find("json.dumps") is __import__("json").dumps


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine.good.Encodr", r"'mine.good.Encodr', but mine.good has no 'Encodr'; did you mean Encoder\?"),
        ("mine.good.Encoder.walk", r"but mine.good.Encoder has no 'walk'; choose one of run"),
        ("mine.god.Encoder", r"but mine has no 'god'"),
        (
            "mine.missing.A",
            r"the module mine.missing imports 'not_installed_anywhere', .* \(in .*missing.py:2\)",
        ),
        (
            "mine.broken.A",
            r"mine.broken fails when it is imported: RuntimeError: no licence \(in .*broken.py:2\)",
        ),
        ("mine.syntax.A", r"mine.syntax fails when it is imported: SyntaxError: .*syntax.py:1"),
        ("mine.name.A", r"ImportError: cannot import name 'no_such_name' .*\(in .*name.py:1\)"),
        (
            "absent.A",
            r"Python cannot find a package 'absent' here: install it, or .*PYTHONPATH",
        ),
        ("Encoder", r"cannot be a class or function: write package.module.Class"),
        ("mine..A", r"cannot be a class"),
    ],
)
def test_what_is_wrong_is_said(package, target, message):
    with pytest.raises(ConfigError, match=message):
        find(target)


def test_trust_ends_at_dots():
    for trusted in (["mine"], ["mine."], ["mine.good"], ["mine.good.Encoder"], ["other", "mine"]):
        assert covered("mine.good.Encoder", trusted), trusted
    for trusted in ([], ["min"], ["mine.go"], ["mine.good.Encoder2"], ["mine.good.Encoder.run"], ["good"]):
        assert not covered("mine.good.Encoder", trusted), trusted


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ()),
        ("mine", ("mine",)),
        ("mine, other.nets.", ("mine", "other.nets")),
        (["mine", "other"], ("mine", "other")),
        ((), ()),
    ],
)
def test_options_that_say_whom_to_trust(value, names):
    assert parse_trusted(value) == names


@pytest.mark.parametrize("value", ["*", "", ".", "a..b", 3, True, [1], {"a": 1}, ["a b"], "mine/nets.py"])
def test_others_are_refused(value):
    with pytest.raises(
        ConfigError, match=r"--trusted: .* cannot be the name of a package, module or class; write"
    ):
        parse_trusted(value, "--trusted")


def test_targets_are_found_at_any_depth():
    assert list(named({"_target_": "a.A", "x": [{"_target_": "b.B", "y": {"_target_": "c.C"}}]})) == [
        "a.A",
        "b.B",
        "c.C",
    ]
