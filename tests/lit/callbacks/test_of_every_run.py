"""The callbacks of every run together, with Lightning's own that average weights and save when a run fails."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback, OnExceptionCheckpoint
from torch.utils.data import DataLoader

from brightness import batch_of, module_of
from sa2depth.errors import UserError
from sa2depth.lit import polynomial
from sa2depth.lit.callbacks import of_every_run
from sa2depth.lit.callbacks.pictures import kept_examples


def trainer_of(folder, *callbacks):
    quiet = {"logger": False, "enable_progress_bar": False, "default_root_dir": folder}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "max_epochs": 1}
    return L.Trainer(callbacks=[*callbacks, *of_every_run("auto", "auto")], **quiet)


def trained_by(lr):
    return module_of(optim=lambda model: torch.optim.SGD(model.parameters(), lr), schedule=polynomial)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_averaged_weights_are_scored_and_kept(tmp_path):
    loader = DataLoader([batch_of(), batch_of(first=2)], batch_size=None)
    module, weights = trained_by(0.1), []
    seen = LambdaCallback(on_train_batch_end=lambda _, m, *a: weights.append(m.model.factor.item()))
    scored = LambdaCallback(on_validation_batch_end=lambda _, m, *a: weights.append(m.model.factor.item()))
    trainer = trainer_of(tmp_path, seen, EMAWeightAveraging(decay=0.75), scored)
    trainer.fit(module, loader, loader)
    first, second, *averaged = weights
    assert first != second
    assert [*averaged, module.model.factor.item()] == pytest.approx([0.75 * first + 0.25 * second] * 3)
    trainer.test(module, loader, verbose=False)
    assert module.evaluation.split_images == 2
    assert len(kept_examples(trainer)) == 4


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_run_that_fails_is_saved(tmp_path):
    batches = [batch_of(), batch_of()]
    batches[1]["image"][:] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        trainer_of(tmp_path, OnExceptionCheckpoint(tmp_path)).fit(
            trained_by(0.1), DataLoader(batches, batch_size=None)
        )
    saved = torch.load(tmp_path / "on_exception.ckpt", weights_only=False)
    assert saved["global_step"] == 1
