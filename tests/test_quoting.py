"""Text on a command line arrives unchanged through a shell, Hydra's grammar and OmegaConf's interpolations."""

import json
import shlex
import subprocess

import pytest
from hydra import compose, initialize_config_dir

from sa2depth.quoting import argument, override
from sa2depth.resources import conf_dir

VALUES = [
    "last.ckpt", "a=b.ckpt", "ü.ckpt", "日本", "a#b", "a(b", "a)b", "a(b)", "a,b", "a b", "a'b", 'a"b', "a{b",
    "{a}", "[a",
    "[a]", "a:b", "1:30", "a$b", "$HOME", "${name}", "a${x", "\\${x}", "a\\b", "a\\", '\\"', "~/a", "%", "a@b", "a!b",
    "a ", " a", "", "a;b", "a&b", "a*b", "<a>", "`a`", "1e5", "007", "true", "null", "a\tb", "-m", "choice(1,2)", "???",
]  # fmt: skip


def composed(arguments):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=arguments)


@pytest.mark.parametrize("value", [value for value in VALUES if value != "???"])
def test_text_arrives_as_it_is(value):
    typed = override("resume", value)
    (given,) = shlex.split(typed)
    assert composed([given]).resume == value


def test_a_real_shell_agrees_with_shlex():
    command = "printf '%s\\n' " + " ".join(override("resume", value) for value in VALUES)
    seen = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert seen.split("\n")[:-1] == [shlex.split(override("resume", value))[0] for value in VALUES]


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("runs/demo/2026-11-27_23/last.ckpt", "resume=runs/demo/2026-11-27_23/last.ckpt"),
        ("/data/lr=1/last.ckpt", """'resume="/data/lr=1/last.ckpt"'"""),
        ("my runs/last.ckpt", """'resume="my runs/last.ckpt"'"""),
        ("null", """'resume="null"'"""),
    ],
)
def test_quotes_stand_only_where_they_are_needed(value, typed):
    assert override("resume", value) == typed


def test_an_argument():
    assert argument("runs/a.ckpt") == "runs/a.ckpt"
    assert json.loads(argument('"my runs"').strip("'")) == "my runs"
