"""Two processes on the CPU: the multi-GPU code path, with image counts that do not divide."""

import csv
import json
from pathlib import Path

import cv2
import pytest
from omegaconf import OmegaConf

from agreement import assert_same_scores
from sa2depth.lit import SyncBatchNorms
from sa2depth.run.build import build_trainer

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


def test_processes_of_a_clusters_launcher_share_a_folder(program, tiny, tmp_path):
    overrides = [o for o in tiny if not o.startswith(("trainer.accelerator", "trainer.max_epochs"))]
    done = program(
        *("torch.distributed.run", "--nproc_per_node=2", "--master_port=29517", "-m", "sa2depth.train"),
        *(*overrides, "trainer=ddp_sim", "trainer.max_epochs=1"),
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder,) = tmp_path.glob("runs/demo/*")
    assert len(list(folder.glob("pictures/*.png"))) == 18
    with (folder / "per_image.csv").open() as file:
        assert [int(row["index"]) for row in csv.DictReader(file)] == list(range(7))
    assert {path.name for path in folder.glob("*.log")} == {"train.log"}


@pytest.fixture(scope="module")
def both_ways(ddp_run, evaluate_tiny, tmp_path_factory):
    """Folders of two evaluations of the trained model: by two processes, and by one."""
    alone = tmp_path_factory.mktemp("alone")
    evaluate_tiny(ddp_run[0] / "out/model.safetensors", alone)
    return ddp_run[0] / "out", alone / "out"


def test_one_process_scores_the_same_model_alike(both_ways):
    tables = []
    for folder in both_ways:
        with (folder / "per_image.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    for row, other in zip(*tables, strict=True):
        assert row["id"] == other["id"]
        assert_same_scores(*({key: value for key, value in r.items() if key != "id"} for r in (row, other)))


def test_one_process_leaves_the_same_files(both_ways):
    names = [{p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} for folder in both_ways]
    of_training = {"curves.png", "hparams.yaml", "metrics.csv", "model.safetensors"}
    kept, alone_kept = (
        {n for n in found - of_training if not n.startswith(("checkpoints", ".hydra")) and ".log" not in n}
        for found in names
    )
    assert kept == alone_kept
    assert len([n for n in kept if n.startswith("pictures/")]) == 18
    both, alone = (json.loads((folder / "metrics.json").read_text()) for folder in both_ways)
    for key in ("frames", "native_sizes", "input_sizes", "protocol", "evaluated_images", "complete"):
        assert both[key] == alone[key], key
    for one, other in zip(both["by_depth"], alone["by_depth"], strict=True):
        assert_same_scores(one, other)
    assert [(p["kind"], p["id"]) for p in both["pictures"]] == [
        (p["kind"], p["id"]) for p in alone["pictures"]
    ]


def test_the_pictures_of_both_processes_show_what_one_process_shows(both_ways):
    for picture in (both_ways[0] / "grid.png", *sorted((both_ways[0] / "pictures").glob("*.png"))):
        other = both_ways[1] / picture.relative_to(both_ways[0])
        one, two = (cv2.imread(str(path)).astype(int) for path in (picture, other))
        assert one.shape == two.shape
        # rounding may differ by a step of the colour scale
        assert (abs(one - two).max(axis=-1) > 16).mean() < 1e-3, picture.name


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


HALF = {
    "_target_": "lightning.pytorch.plugins.MixedPrecision",
    "precision": "bf16-mixed",
    "device": "cpu",
}


@pytest.mark.parametrize("plugins", [None, [], HALF, [HALF]], ids=["none", "empty", "one", "list"])
def test_batch_norms_are_synchronised_by_a_plugin_that_knows_those_of_timm(plugins):
    node = {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    cfg = OmegaConf.create({"trainer": {**node, "sync_batchnorm": True, "plugins": plugins}})
    OmegaConf.set_struct(cfg, True)  # as Hydra composes it
    for with_logs in (True, False):
        trainer = build_trainer(cfg, with_logs)
        assert type(trainer.strategy._layer_sync) is SyncBatchNorms
        assert (trainer.precision == "bf16-mixed") is bool(plugins)
    cfg.trainer.sync_batchnorm = False
    assert build_trainer(cfg).strategy._layer_sync is None
