"""Ctrl-C in real programs, while they load their libraries or while a command works, and the files left behind."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sa2depth.errors import DataError
from sa2depth.interrupts import ending_at_ctrl_c

pytestmark = pytest.mark.slow

# Sends SIGINT to a program at the moment when it first imports a module.
AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""
# C code and careless libraries catch or change exceptions that are raised while they import.
RAISES = "            signal.raise_signal(signal.SIGINT)\n"
CAUGHT = f"""
            try:
    {RAISES}
            except KeyboardInterrupt as error:
                HOW
"""
HOOKS = {
    "raised": AT_IMPORT,
    "another error": AT_IMPORT.replace(
        RAISES, CAUGHT.replace("HOW", "raise ImportError('failed') from error")
    ),
    "swallowed": AT_IMPORT.replace(RAISES, CAUGHT.replace("HOW", "pass")),
}
COMMAND = "import sys; from sa2depth.cli import main; sys.exit(main(sys.argv[1:]))"  # the console script
PROGRAMS = {
    "train": ("-m", "sa2depth.train", "experiment=demo"),
    "eval": ("-m", "sa2depth.eval", "checkpoint=none"),
    "demo": ("-m", "sa2depth.demo"),
    "predict": ("-c", COMMAND, "predict", ".", "-o", "out", "-c", "none"),
    "doctor": ("-c", COMMAND, "doctor"),
    "bench": ("-m", "sa2depth", "bench"),
    "show": ("-m", "sa2depth", "data", "show", "synthetic"),
    "speed": ("-m", "sa2depth", "data", "speed", "synthetic"),
}


def ended(arguments, folder, hook, module):
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(hook)
    work = folder / "work"
    work.mkdir()
    Image.new("RGB", (40, 30)).save(work / "a.png")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "INTERRUPTED_AT": module},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading ")]
    assert sorted(file.name for file in work.iterdir()) == ["a.png"]
    return done.returncode, done.stdout, lines


@pytest.mark.parametrize("program", PROGRAMS)
def test_while_pytorch_is_loaded(program, tmp_path):
    assert ended(PROGRAMS[program], tmp_path, AT_IMPORT, "torch") == (130, "", ["interrupted"])


LOADS = """
from sa2depth.stages import loading
with loading("libraries", command=True):
    import colorsys
print("it went on")
"""


@pytest.mark.parametrize("how", HOOKS)
def test_whatever_becomes_of_it_in_an_import(how, tmp_path):
    assert ended(("-c", LOADS), tmp_path, HOOKS[how], "colorsys") == (130, "", ["interrupted"])


def test_while_the_command_line_is_loaded(tmp_path):
    assert ended(PROGRAMS["doctor"], tmp_path, AT_IMPORT, "typer") == (130, "", ["interrupted"])


HALF_WRITTEN = """
import signal, sys
import numpy as np
from sa2depth.cli import main
save, count = np.save, 0

def interrupted(stream, array, **options):
    global count
    count += 1
    if count == 2:
        stream.write(b"half")
        signal.raise_signal(signal.SIGINT)
    save(stream, array, **options)

np.save = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_files_written_so_far_are_whole(tmp_path):
    from sa2depth import create_model
    from sa2depth.weights.checkpoint import save_model

    torch.manual_seed(0)
    save_model(create_model("sa2depth_nano", min_depth=0.1, max_depth=10.0), tmp_path / "m.safetensors")
    for name in "abc":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in "abc"]
    options = ["-o", str(tmp_path / "out"), "-c", str(tmp_path / "m.safetensors"), "--formats", "npy,mm"]
    done = subprocess.run(
        [sys.executable, "-c", HALF_WRITTEN, "predict", *images, *options],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("loading ", "predicting: "))]
    assert (done.returncode, done.stdout, lines) == (130, "", ["interrupted"])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a_depth.npy", "a_depth_mm.png"]
    assert np.load(tmp_path / "out/a_depth.npy").shape == (64, 64)


def ctrl_c_becomes(error):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as interrupt:
        raise error from interrupt


def test_other_errors_and_exits_go_through(capsys):
    with pytest.raises(DataError, match="mine"), ending_at_ctrl_c():
        raise DataError("mine")
    with pytest.raises(SystemExit) as end, ending_at_ctrl_c():
        raise SystemExit(3)
    assert end.value.code == 3
    with pytest.raises(LookupError), ending_at_ctrl_c(passing=(LookupError,)):
        ctrl_c_becomes(LookupError("told already"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shown", [True, False])
def test_contexts_inside_one_another_know_of_it(shown, capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end, ending_at_ctrl_c(), ending_at_ctrl_c(shown=shown):
        ctrl_c_becomes(ImportError("of C code"))
    assert end.value.code == 130
    assert capsys.readouterr().err == ("interrupted\n" if shown else "")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_program_that_ignores_ctrl_c_goes_on():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending_at_ctrl_c():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_takes_no_handler():
    seen = []

    def work():
        with ending_at_ctrl_c():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
