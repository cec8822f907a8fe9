"""A run that is resumed in another folder knows its best checkpoint and the score of that checkpoint."""

import logging
import shutil

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from sa2depth.errors import CheckpointError
from sa2depth.lit import Continuation, WholeCheckpoints
from sa2depth.lit import checkpoint_files as files


class Scored(L.LightningModule):
    """A module with given scores, one per epoch."""

    def __init__(self, scores):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.scores = scores

    def training_step(self, batch, _):
        return self.layer(batch).sum()

    def validation_step(self, batch, _):
        self.log("score", self.scores[self.current_epoch])

    def test_step(self, batch, index):
        """Nothing to score."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, scores, resume=None, keep=1, mode="min", continued=True):
    """Train to the number of scores; returns the callback that keeps the best, and the trainer."""
    name = "best" if keep == 1 else "{epoch}"
    best = ModelCheckpoint(
        folder, name, monitor="score", mode=mode, save_top_k=keep, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = L.Trainer(
        default_root_dir=folder,
        callbacks=[*([Continuation(resume)] if resume and continued else []), best, last],
        plugins=[WholeCheckpoints()],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=len(scores),
    )
    data = DataLoader(torch.zeros(1, 1))
    trainer.fit(module := Scored(scores), data, data, ckpt_path=resume)
    chosen = best.best_model_path
    trainer.test(module, data, ckpt_path=chosen, verbose=False)
    assert best.best_model_path == chosen
    return best, trainer


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def moved(tmp_path):
    """A run of two epochs, the second one worse, whose folder was renamed."""
    fit(tmp_path / "old", [0.1, 0.3])
    shutil.move(tmp_path / "old", tmp_path / "moved")
    return tmp_path / "moved"


@pytest.mark.parametrize("place", ["moved", "new"])
@pytest.mark.parametrize(("scores", "expected", "epoch"), [([0.2, 0.15], 0.1, 0), ([0.2, 0.05], 0.05, 3)])
def test_the_best_of_both_parts_counts(moved, tmp_path, place, scores, expected, epoch):
    folder = tmp_path / place
    best, _ = fit(folder, [9, 9, *scores], moved / "last.ckpt")
    assert best.best_model_path == str(folder / "best.ckpt")
    assert best.best_model_score.item() == pytest.approx(expected)
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == epoch
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    if place == "new":
        assert (
            torch.load(moved / "best.ckpt", weights_only=True)["epoch"] == 0
        )  # the earlier run is unchanged


def test_lightning_alone_takes_the_worse_one(moved, tmp_path):
    best, _ = fit(tmp_path / "new", [9, 9, 0.2, 0.15], moved / "last.ckpt", continued=False)
    assert best.best_model_score.item() == pytest.approx(0.15)


@pytest.mark.parametrize(("mode", "kept"), [("min", {"epoch=0", "epoch=3"}), ("max", {"epoch=1", "epoch=2"})])
def test_several_of_the_best(tmp_path, mode, kept):
    fit(tmp_path / "old", [0.1, 0.9], keep=2, mode=mode)
    shutil.move(tmp_path / "old", tmp_path / "moved")
    best, _ = fit(tmp_path / "new", [9, 9, 0.6, 0.2], tmp_path / "moved/last.ckpt", keep=2, mode=mode)
    assert {p.stem for p in (tmp_path / "new").glob("epoch*")} == kept
    assert {p.stem for p in (tmp_path / "moved").glob("epoch*")} == {"epoch=0", "epoch=1"}
    assert best.best_model_score.item() == pytest.approx(0.1 if mode == "min" else 0.9)


def test_fewer_of_the_best_than_before(tmp_path):
    fit(tmp_path / "old", [0.1, 0.05], keep=2)
    best, _ = fit(tmp_path / "new", [9, 9, 0.6, 0.7], tmp_path / "old/last.ckpt")
    assert best.best_model_score.item() == pytest.approx(0.05)


def test_a_best_checkpoint_that_is_gone_is_named(moved, tmp_path, caplog):
    (moved / "best.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        best, _ = fit(tmp_path / "new", [9, 9, 0.2, 0.15], moved / "last.ckpt")
    assert f"the best checkpoint so far (score 0.1) is neither in {moved} nor at" in caplog.text
    assert best.best_model_score.item() == pytest.approx(0.15)


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path, monkeypatch):
    writer = WholeCheckpoints()
    writer.save_checkpoint({"epoch": torch.tensor(1)}, tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError) as caught:
        writer.save_checkpoint({"epoch": torch.tensor(2)}, tmp_path / "last.ckpt")
    assert "last.ckpt cannot be written (No space left on device; it needs 0.0 MB)" in str(caught.value)
    assert str(caught.value).endswith(f"resume={tmp_path}/last.ckpt continues from the previous one")
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(CheckpointError, match="no checkpoint was written yet"):
        writer.save_checkpoint({"epoch": torch.tensor(2)}, tmp_path / "other" / "last.ckpt")
