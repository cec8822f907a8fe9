"""A killed run leaves no file that only looks complete; the next run continues from there."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

# It writes pieces of 2 kB slowly, so that some file is half written most of the time.
SLOW = """
import sys, time
from pathlib import Path
from sa2depth.data.prepare import engine, execute, make_plan
from sa2depth.data.sets import make_recipe
from sa2depth.data.prepare.sources import open_sources

content = engine._content

def slowly(reader, step):
    for piece in content(reader, step):
        yield piece
        time.sleep(0.002)

engine._content, engine._PIECE = slowly, 2048
root, *sources = map(Path, sys.argv[1:])
recipe = make_recipe("diml_outdoor", root)
plan = make_plan(recipe, open_sources(sources, recipe), copy=True)
outcome = execute(plan, workers=4)
print(len(plan.steps), outcome.written)
"""


@pytest.fixture
def sources(tmp_path):
    """A zip archive and a folder with 120 files of 20 kB each; returns them and the expected contents of the tree."""
    rng = np.random.default_rng(0)
    files = {
        f"scene{number % 3}/{folder}/{number:04d}.png": rng.bytes(20_000)
        for number in range(120)
        for folder in ("outleft", "depthmap")
    }
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for name in list(files)[:120]:
            archive.writestr(name, files[name])
    for name in list(files)[120:]:
        path = tmp_path / "two" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    return [tmp_path / "one.zip", tmp_path / "two"], files


def tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def command(root, paths):
    return [sys.executable, "-c", SLOW, str(root), *map(str, paths)]


def kill_when(root, paths, count):
    """Start a run and kill it as soon as ``count`` files exist."""
    process = subprocess.Popen(command(root, paths), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while sum(not path.name.startswith(".") for path in root.rglob("*.png")) < count:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_three_times(sources, tmp_path):
    paths, files = sources
    root = tmp_path / "root"
    half_written = 0
    for count in (1, 70, 170):
        kill_when(root, paths, count)
        left = tree(root)
        whole = {name: data for name, data in left.items() if "/." not in name}
        assert count <= len(whole) < len(files)
        assert whole.items() <= files.items()
        half_written += len(left) - len(whole)
    assert half_written > 0, "no run was caught while it was writing: the test proves nothing"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png") if path.name[0] != "."}
    done = subprocess.run(command(root, paths), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(files)), str(len(files) - len(whole))]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command(undisturbed, paths), check=True, capture_output=True)
    assert tree(root) == tree(undisturbed) == files
