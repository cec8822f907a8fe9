"""The time left for a command, from a training with a fake clock."""

import logging
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from sa2depth.lit import TimeLeft
from sa2depth.lit.callbacks import time_left
from sa2depth.lit.callbacks.time_left import Pace, Work, in_words

STEP_S, RENDER_S, VAL_S, TEST_S = 2.0, 0.5, 0.25, 0.25
TRAIN, VAL, TEST, BATCH, EPOCHS = 40, 8, 12, 4, 6


@pytest.fixture
def clock(monkeypatch):
    stands = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: stands.now))
    monkeypatch.setattr(time_left, "_CLOSING_S", 0.0)
    monkeypatch.setattr(time_left, "_CLOSING_MEGAPIXEL_S", 0.0)
    return stands


class Images:
    """A source that takes a given time for an image, and may keep it."""

    def __init__(self, clock, count, keeps):
        self.clock, self.count, self.keeps_samples, self.kept = clock, count, keeps, set()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index not in self.kept:
            self.clock.now += RENDER_S
        if self.keeps_samples:
            self.kept.add(index)
        return {"image": torch.zeros(3, 2, 2)}


class Data(L.LightningDataModule):
    batch_size, eval_batch_size, num_workers = BATCH, 2, 0

    def __init__(self, clock, keeps):
        super().__init__()
        counts = {"train": TRAIN, "val": VAL, "test": TEST}
        self.sources = {split: Images(clock, count, keeps) for split, count in counts.items()}

    def source(self, split):
        return self.sources[split]

    def counts(self):
        return {split: len(source) for split, source in self.sources.items()}

    def train_dataloader(self):
        return DataLoader(self.sources["train"], self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.sources["val"], self.eval_batch_size)

    def test_dataloader(self):
        return DataLoader(self.sources["test"], self.eval_batch_size)


class Network(L.LightningModule):
    def __init__(self, clock, slow_from=10**9):
        super().__init__()
        self.weight, self.clock, self.slow_from = torch.nn.Parameter(torch.zeros(())), clock, slow_from

    def training_step(self, batch, index):
        first = self.global_step < 2
        slow = 3 if self.global_step >= self.slow_from else 1
        self.clock.now += 50.0 if first else STEP_S * slow  # the first two compile
        return self.weight * 1.0

    def validation_step(self, batch, index):
        self.clock.now += VAL_S * len(batch["image"])

    def test_step(self, batch, index):
        self.clock.now += TEST_S * len(batch["image"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Spy(TimeLeft):
    """Records its estimates and their times, in seconds."""

    def __init__(self, clock, **options):
        super().__init__(**options)
        self.clock, self.said = clock, []

    def _say(self, trainer, batch_idx):
        training, after = self._pace(trainer).left(self._work(trainer, batch_idx))
        self.said.append((trainer.current_epoch, batch_idx, self.clock.now, training + after))
        super()._say(trainer, batch_idx)


@pytest.fixture
def run(clock, tmp_path):
    """``run(keeps, **trainer's options)``: the estimates, and the time when the test ended."""

    def run(keeps=True, slow_from=10**9, every_s=1e9, **options):
        spy = Spy(clock, every_s=every_s)
        options = {"max_epochs": EPOCHS, "check_val_every_n_epoch": 2, **options}
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path, callbacks=[spy],
            **options,
        )  # fmt: skip
        module, data = Network(clock, slow_from), Data(clock, keeps)
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        return spy.said, clock.now

    return run


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"max_steps": 35}, {"limit_test_batches": 3}, {"val_check_interval": 5}]
)
def test_it_is_right_from_the_first_validation_on(run, keeps, options):
    said, end = run(keeps, **options)
    assert [epoch for epoch, *_ in said] == list(range(4 if "max_steps" in options else EPOCHS))
    for _, _, now, left in said[1:]:
        assert now + left == pytest.approx(end, abs=0.6)


@pytest.mark.parametrize("keeps", [True, False])
def test_after_the_first_epoch_only_the_evaluation_is_a_guess(run, keeps):
    said, end = run(keeps)
    _, _, now, left = said[0]
    guess, true = STEP_S / BATCH / 3, VAL_S
    evaluated = 3 * VAL + TEST
    assert now + left == pytest.approx(end + evaluated * (guess - true), abs=0.6 + 2 * VAL * RENDER_S)


def test_it_follows_a_machine_that_becomes_busy(run):
    said, end = run(max_epochs=30, check_val_every_n_epoch=30, slow_from=110)
    misses = [end - (now + left) for _, _, now, left in said]
    assert misses[5] > 300
    assert abs(misses[-5]) < 20


def test_lines_in_between_where_there_is_no_progress_bar(run, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "sa2depth.lit.callbacks.time_left")
    run(every_s=10.0)
    lines = [record.message for record in caplog.records]
    within = [line for line in lines if "step" in line]
    assert re.fullmatch(
        r"epoch 1 of 6, step 4 of 10: about [0-9]+ min( [0-9]+ s)? left \(training .+, test and report .+\)",
        within[0],
    )
    assert len(within) >= 6
    assert sum("step" not in line and line.startswith("epoch") for line in lines) == EPOCHS
    assert lines[-1].startswith("test, tables and pictures: about")
    caplog.clear()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run(every_s=10.0)
    assert not [record for record in caplog.records if "step" in record.message]


def test_without_an_end_nothing_is_said(run, caplog, clock):
    caplog.set_level(logging.INFO, "sa2depth.lit.callbacks.time_left")

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    spy = Spy(clock)
    trainer = SimpleNamespace(max_epochs=-1, current_epoch=0, num_training_batches=10, max_steps=-1)
    vars(trainer).update(
        global_step=10, accumulate_grad_batches=1, world_size=1, limit_val_batches=1.0, limit_test_batches=1.0,
        check_val_every_n_epoch=1, val_check_batch=10, callbacks=[], datamodule=None,
    )  # fmt: skip
    spy._steps.append(1.0)
    spy._loads.append(0.0)
    spy._say(trainer, None)
    assert not caplog.records


def test_only_the_first_process_speaks(clock, caplog):
    caplog.set_level(logging.INFO, "sa2depth.lit.callbacks.time_left")
    other = SimpleNamespace(is_global_zero=False, datamodule=None)
    callback = TimeLeft(every_s=0.0)
    callback._seen = 10
    callback.on_train_batch_start(other, None, None, 0)
    callback.on_train_batch_end(other, None, None, {"image": torch.zeros(1, 3, 2, 2)}, 0)
    callback.on_train_epoch_end(other, None)
    callback.on_test_start(other, None)
    assert not caplog.records


def test_the_sum():
    pace = Pace(step=2.0, load=1.0, load_later=0.5, epoch=3.0, val_image=0.1, test_image=0.2)
    work = Work(4, 30, 3, 2, images_val=50, images_test=100, megapixels_closing=600.0)
    training, after = pace.left(work)
    assert training == 4 * 3.0 + 30 * 2.5 + 3 * 3.0 + 2 * 50 * 0.1
    assert after == 100 * 0.2 + 4.0 + 600 * 0.03


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (99.4, "99 s"),
        (100, "1 min 40 s"),
        (238, "4 min"),
        (3595, "1 h"),
        (3600 * 2.5, "2 h 30 min"),
        (3600 * 30, "30 h"),
    ],
)
def test_words(seconds, words):
    assert in_words(seconds) == words
