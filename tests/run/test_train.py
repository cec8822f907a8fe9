"""Training through ``python -m sa2depth.train``: its output, its files, and its errors."""

import csv
import json
import math

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from agreement import assert_same_scores
from sa2depth import load_model
from sa2depth.data.splits.tables import read_table
from sa2depth.scenes import SyntheticScenes
from sa2depth.train import train

pytestmark = [pytest.mark.xdist_group("train"), pytest.mark.slow]

FILES = (
    *("metrics.json", "per_image.csv", "by_depth.csv", "grid.png", "curves.png", "model.safetensors"),
    *("metrics.csv", "pictures/worst_1.png", "pictures/best_6.png", "pictures/spread_6.png"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", ".hydra/config.yaml"),
)


def test_leaves_every_file_and_names_it(tiny_run):
    folder, done = tiny_run
    for name in FILES:
        assert (folder / name).is_file(), name
    for name in (*FILES[:7], "pictures"):
        assert name in done.stdout
    for name in ("best.ckpt", "last.ckpt"):
        assert name in done.stdout


def test_prints_the_plan(tiny_run):
    _, done = tiny_run
    for words in (
        "8 synthetic scenes",
        "5 synthetic scenes",
        "7 synthetic scenes",
        "InternImage, from scratch",
    ):
        assert words in done.stdout
    for words in ("parameters", "CPU, precision 32-true", "synthetic v1", "0.1-10 m", "out"):
        assert words in done.stdout


def test_it_says_how_long_the_command_still_takes(tiny_run):
    _, done = tiny_run
    lines = [line for line in done.stdout.splitlines() if " left (training " in line]
    assert [line.partition("- ")[2].partition(": about")[0] for line in lines if "step" not in line] == [
        "epoch 1 of 2",
        "epoch 2 of 2",
    ]
    assert "test, tables and pictures: about" in done.stdout


def test_metrics_are_the_mean_of_the_table(tiny_run):
    folder, _ = tiny_run
    scores = json.loads((folder / "metrics.json").read_text())
    with (folder / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(7))
    assert len({row["id"] for row in rows}) == 7
    for name, value in scores["metrics"].items():
        assert value == pytest.approx(math.fsum(float(row[name]) for row in rows) / 7, rel=1e-12)
    assert scores["images"] == 7
    assert scores["protocol"]["name"] == "synthetic"
    assert set(scores["baselines"]["median_depth_map"]) >= set(scores["metrics"])


def test_says_how_long_each_stage_took(tiny_run):
    folder, done = tiny_run
    scores = json.loads((folder / "metrics.json").read_text())
    seconds = scores["stages_s"]
    stages = {"start", "set-up", "fit", "validation", "test", "pictures", "baseline", "tables"}
    assert set(seconds) == {*stages, "rest", "total"}
    assert math.fsum(value for name, value in seconds.items() if name != "total") == pytest.approx(
        seconds["total"], abs=0.06
    )  # each is rounded
    assert scores["fit_s"] == pytest.approx(seconds["fit"] + seconds["validation"], abs=0.2)
    assert seconds["start"] > 0.5  # PyTorch alone takes longer
    line = next(line for line in done.stdout.splitlines() if line.startswith("time "))
    assert f"start {seconds['start']:.1f} s, " in line
    assert f"; total {seconds['total']:.1f} s" in line


def test_the_shared_model_is_the_best_checkpoint_and_predicts_what_was_scored(tiny_run):
    folder, _ = tiny_run
    model, best = load_model(folder / "model.safetensors"), load_model(folder / "checkpoints/best.ckpt")
    assert model.spec == best.spec
    assert (model.min_depth, model.max_depth) == (0.1, 10.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, best.state_dict()[name]), name
    sample = SyntheticScenes(count=7, seed=2, height=64, width=64, kind="streets")[0]
    image = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        depth = model.eval()(image).depth[0, 0].double().numpy()
    error = (abs(depth - sample.depth) / sample.depth)[sample.depth > 0.001].mean()
    with (folder / "per_image.csv").open() as file:
        assert error == pytest.approx(float(next(csv.DictReader(file))["abs_rel"]), rel=1e-3)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "abs_rel" in file.metadata()["sa2depth"]


def test_evaluation_of_the_model_gives_the_same_table(tiny_run, evaluate_tiny, tmp_path):
    folder, _ = tiny_run
    trained = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert_same_scores(evaluate_tiny(folder / "model.safetensors", tmp_path), trained)


def test_goes_on_from_the_last_checkpoint(tiny_run, program, tiny, tmp_path):
    folder, _ = tiny_run
    done = program(
        "sa2depth.train", *tiny, "trainer.max_epochs=3", f"resume={folder / 'checkpoints/last.ckpt'}",
        "hydra.run.dir=out", "baseline=false", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "out/metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [0, 1, 2, 3, 4, 5]  # the curves span both runs
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["callbacks"]
    before = next(state for state in best.values() if state.get("monitor") == "val/abs_rel")[
        "best_model_score"
    ]
    state = torch.load(tmp_path / "out/checkpoints/best.ckpt", weights_only=True)["callbacks"]
    after = next(state for state in state.values() if state.get("monitor") == "val/abs_rel")[
        "best_model_score"
    ]
    assert after <= before
    scores = json.loads((tmp_path / "out/metrics.json").read_text())
    assert scores["checkpoint"] == str(tmp_path / "out/checkpoints/best.ckpt")
    assert scores["steps"] == 6  # 4 of the first run, 2 of this one
    assert scores["baselines"] == {}


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("model.safetensors", [], ["a shared model holds no training state", "checkpoints/last.ckpt"]),
        ("cut.ckpt", [], ["is a damaged PyTorch file", "; name "]),
        ("noise.ckpt", [], ["is not a checkpoint", "; name "]),
        (
            "checkpoints/last.ckpt",
            ["trainer.max_epochs=3", "encoder.channels=32"],
            ["was trained with encoder.channels=16"],
        ),
        ("checkpoints/last.ckpt", [], ["stands at epoch 2 of 2 (4 steps): raise trainer.max_epochs"]),
        (
            "checkpoints/last.ckpt",
            ["trainer.max_epochs=-1", "trainer.max_steps=4"],
            ["stands at step 4 of 4: raise trainer.max_steps"],
        ),
    ],
)
def test_what_cannot_be_gone_on_from_is_known_before_the_plan(
    tiny_run, launching, tiny, tmp_path, name, overrides, words
):
    folder, _ = tiny_run
    whole = (folder / "checkpoints/last.ckpt").read_bytes()
    made = {"cut.ckpt": whole[: len(whole) // 2], "noise.ckpt": b"\x13noise" * 999}
    path = (tmp_path if name in made else folder) / name
    if name in made:
        path.write_bytes(made[name])
    status, said = launching(train, *tiny, *overrides, f"resume={path}")
    assert status == 2, said
    assert "sa2depth.train:" not in launching.printed  # not even the plan
    assert "Traceback" not in said
    assert "weights_only" not in said
    (message,) = said[said.index("error: ") :].splitlines()
    assert message.startswith(f"error: resume={path} ")
    for word in words:
        assert word in message


def test_the_checkpoint_holds_what_the_function_depends_on(tiny_run):
    folder, _ = tiny_run
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert state["hyper_parameters"]["spec"]["max_depth"] == 10.0
    assert state["global_step"] == 4


def test_learns(tiny_run):
    folder, _ = tiny_run
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1e-3", ["optim.lrr", "optim.lr"]),
        ("experiment=demoo", ["demoo", "demo"]),
        ("model=sa2depth_x", ["sa2depth_x", "sa2depth_s"]),
        ("+optim.lrr=1e-3", ["optim.lrr", "did you mean lr"]),
        ("+nonsense=1", ["nonsense"]),
        ("encoder=timm", ["encoder.name"]),
        ("min_depth=20", ["min_depth", "20"]),
        ("optim.betas=[0.9]", ["betas"]),
        ("loss.variance_focus=2", ["loss.variance_focus=2", "from 0 to 1"]),
        ("trainer.precision=33", ["33", "in trainer"]),
        ("resume=nowhere.ckpt", ["nowhere.ckpt"]),
        ("pretrained_encoder=nowhere.pth", ["nowhere.pth"]),
    ],
)
def test_refuses_what_cannot_work_with_one_clear_message(launching, tiny, override, words):
    status, said = launching(train, *tiny[:2], override, "trainer.accelerator=cpu")
    assert status == 2, said
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    for word in words:
        assert word in message


def test_missing_data_is_known_before_anything_starts(launching):
    status, said = launching(train, "data=nyu_labelled", "protocol=nyu_eigen", "trainer=cpu")
    assert status == 2
    assert "datasets/nyu" in said
    assert "official_splits" in said
    assert "sa2depth.train:" not in launching.printed  # not even the plan


def test_a_missing_gpu_is_said_in_one_line(program, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = program("sa2depth.train", *tiny[:2], "trainer=gpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "gpu" in done.stderr.lower()


def test_a_sweep_leaves_one_folder_a_job(program, tiny, tmp_path):
    done = program(
        "sa2depth.train", "-m", *tiny, "trainer.max_epochs=1", "baseline=false", "optim.lr=1e-4,1e-3",
        "hydra.sweep.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    scores = [json.loads((tmp_path / f"sweep/{job}/metrics.json").read_text()) for job in (0, 1)]
    assert scores[0]["metrics"]["abs_rel"] != scores[1]["metrics"]["abs_rel"]
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == ["0", "1"]


def test_a_sweep_over_several_devices_a_job_is_refused(program, tiny, tmp_path):
    done = program("sa2depth.train", "-m", *tiny[:-1], "trainer=ddp_sim", "optim.lr=1e-4,1e-3", cwd=tmp_path)
    assert done.returncode == 2
    assert "--multirun with 2 devices per job is refused" in done.stderr


def test_a_corrupt_image_is_named_also_from_a_loader_process(program, tmp_path):
    ids = _labelled_tree(tmp_path / "data/nyu/official_splits/train", 4)
    broken = tmp_path / "data/nyu/official_splits/train" / f"{ids[2][0]}/rgb_{ids[2][1]}.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    names = ",".join(f"train/{scene}/{number}" for scene, number in ids)
    done = program(
        *(
            "sa2depth.train",
            "data=nyu_labelled_overfit",
            "trainer=cpu",
            f"paths.data_dir={tmp_path / 'data'}",
        ),
        *("data.train.limit=null", f"data.train.ids=[{names}]", "data.num_workers=1", "augment=none"),
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    message = done.stderr[done.stderr.index("error: ") :]
    assert str(broken) in message
    assert "Traceback" not in message


def _labelled_tree(root, count):
    """Frames that the labelled list names, 64x64 pixels each; returns ``(scene, number)`` of them."""
    frames = read_table("nyu_v2_labelled_train_795")[:count]
    for scene, number in frames:
        folder = root / scene
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"rgb_{number:05d}.jpg"), np.full((64, 64, 3), 90, np.uint8))
        cv2.imwrite(str(folder / f"sync_depth_{number:05d}.png"), np.full((64, 64), 2000, np.uint16))
    return [(scene, f"{number:05d}") for scene, number in frames]
