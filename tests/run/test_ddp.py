"""Two processes on the CPU: the multi-GPU code path, with image counts that do not divide."""

import csv
import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.xdist_group("ddp"), pytest.mark.slow]


@pytest.fixture(scope="module")
def ddp_run(program, tiny, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("ddp")
    overrides = [o for o in tiny if not o.startswith("trainer.accelerator")]
    done = program("sa2depth.train", *overrides, "trainer=ddp_sim", "hydra.run.dir=out", cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return cwd, done


def test_every_test_image_is_scored_once(ddp_run):
    cwd, _ = ddp_run
    with (cwd / "out/per_image.csv").open() as file:
        assert [int(row["index"]) for row in csv.DictReader(file)] == list(range(7))


def test_one_process_scores_the_same_model_alike(ddp_run, evaluate_tiny, tmp_path):
    folder = ddp_run[0] / "out"
    both = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert evaluate_tiny(folder / "model.safetensors", tmp_path) == pytest.approx(both, rel=1e-4)


def test_says_so_and_writes_once(ddp_run):
    cwd, done = ddp_run
    assert "2 processes on CPU" in done.stdout
    assert done.stdout.count("parameters") == 1
    assert [p.name for p in cwd.iterdir()] == ["out"]


def test_both_processes_are_gone(ddp_run):
    cwd, _ = ddp_run
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cwd").resolve() == cwd.resolve():
                left.append(process.joinpath("cmdline").read_text())
        except OSError:
            continue  # it ended while we looked, or is another user's
    assert left == []
