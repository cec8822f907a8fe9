"""Files from which a training may resume: others get a one-line error, and Lightning decides what is finished."""

import copy
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from sa2depth.errors import CheckpointError, ConfigError
from sa2depth.models import PRESETS, create_model
from sa2depth.weights import read_training_state, save_model

BATCHES = 3
SPEC = {"min_depth": 0.1, "max_depth": 10.0, **PRESETS["sa2depth_nano"]}


class Line(L.LightningModule):
    """One weight, with our hyperparameters."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.save_hyperparameters({"spec": SPEC, "protocol": "synthetic"})
        self.trained = 0

    def training_step(self, batch, _):
        self.trained += 1
        return self.layer(batch).sum()

    def validation_step(self, batch, _):
        self.log("score", self.layer(batch).sum())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def fit(folder, callbacks=(), resume=None, **limits):
    """Train a line; returns the number of batches it was trained on."""
    trainer = L.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **limits,
    )
    line = Line()
    data = torch.arange(BATCHES, dtype=torch.float32)[:, None]
    trainer.fit(line, DataLoader(data), DataLoader(data), ckpt_path=resume)
    return line.trained


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two epochs, saved after every batch, every validation and every epoch."""
    folder = tmp_path_factory.mktemp("line")
    fit(
        folder,
        [
            ModelCheckpoint(folder, "step{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(
                folder, "val{step}", monitor="score", save_top_k=-1, save_on_train_epoch_end=False
            ),
            ModelCheckpoint(folder, "epoch{step}", save_top_k=-1, save_on_train_epoch_end=True),
        ],
        max_epochs=2,
    )
    found = sorted(folder.glob("*.ckpt"))
    assert len(found) == 2 * BATCHES + 2 + 2
    return found


@pytest.fixture
def last(checkpoints):
    return next(path for path in checkpoints if path.name == "epochstep=6.ckpt")


@pytest.fixture
def altered(last, tmp_path):
    """Write the checkpoint with changed content; entries that are None are left out."""

    def write(**content):
        state = torch.load(last, weights_only=True) | content
        path = tmp_path / "altered.ckpt"
        torch.save({key: value for key, value in state.items() if value is not None}, path)
        return path

    return write


def test_progress_of_the_training(last):
    state = read_training_state(last)
    assert (state.epochs, state.steps) == (2, 6)
    assert state.spec == SPEC
    assert state.path == last


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 1},
        {"max_epochs": 2},
        {"max_epochs": 3},
        {"max_epochs": -1, "max_steps": 4},
        {"max_epochs": -1, "max_steps": 6},
        {"max_epochs": -1, "max_steps": 7},
        {"max_epochs": 2, "max_steps": 4},
        {"max_epochs": 2, "max_steps": 100},
        {"max_epochs": 3, "max_steps": 100},
        {"max_epochs": 4, "max_steps": 100},
        {"max_steps": 6},
    ],
    ids=str,
)
def test_refuses_exactly_where_lightning_would_train_nothing(checkpoints, limits, tmp_path):
    for path in checkpoints:
        state = read_training_state(path)
        trainer = L.Trainer(**limits, logger=False, accelerator="cpu", enable_checkpointing=False)
        try:
            state.check_unfinished(trainer.max_epochs, trainer.max_steps)
            refused = False
        except ConfigError:
            refused = True
        trained = fit(tmp_path, resume=path, **limits)
        assert refused == (trained == 0), f"{path.name}: {state}, Lightning trained {trained} batches"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ((2, -1), "stands at epoch 2 of 2 (6 steps): raise trainer.max_epochs;"),
        ((1, -1), "stands at epoch 2 of 1 (6 steps): raise trainer.max_epochs;"),
        ((-1, 6), "stands at step 6 of 6: raise trainer.max_steps;"),
        ((None, 5), "stands at step 6 of 5: raise trainer.max_steps;"),
        ((2, 6), "epoch 2 of 2 (6 steps) and step 6 of 6: raise trainer.max_epochs and trainer.max_steps;"),
    ],
)
def test_a_finished_run_says_what_to_raise(last, limits, words):
    with pytest.raises(ConfigError, match=re.escape(f"resume={last} ") + ".*" + re.escape(words)) as error:
        read_training_state(last).check_unfinished(*limits)
    assert "\n" not in str(error.value)


def test_the_epoch_that_lightning_skips_is_named(last):
    with pytest.raises(
        ConfigError, match=r"epoch 2 of 3 .* set trainer.max_epochs=-1 or trainer.max_steps=-1"
    ):
        read_training_state(last).check_unfinished(3, 100)


@pytest.mark.parametrize("limits", [(3, -1), (-1, -1), (None, -1), (-1, 7), (4, 7)])
def test_an_unfinished_run_may_resume(last, limits):
    read_training_state(last).check_unfinished(*limits)


def test_the_same_network_may_resume(last):
    read_training_state(last).check_network(copy.deepcopy(SPEC))


def changed(**options):
    """The specification with ``part__option=value``."""
    spec = copy.deepcopy(SPEC)
    for name, value in options.items():
        *parts, key = name.split("__")
        node = spec
        for part in parts:
            node = node[part]
        node[key] = value
    return spec


@pytest.mark.parametrize(
    ("spec", "before", "now"),
    [
        (changed(encoder__channels=32), "encoder.channels=16,", "encoder.channels=32:"),
        (changed(bin_head__hidden=8, max_depth=80.0), "max_depth=10.0, bins.hidden=16,", "max_depth=80.0, bins.h"),
        (changed(depth_head__state=None), "head.state=4,", "head.state=null:"),
        (
            changed(encoder={"_target_": "sa2depth.models.encoders.TimmPyramid", "name": "resnet18"}),
            "encoder=InternImage,",
            "encoder=TimmPyramid:",
        ),
        (
            changed(encoder={**SPEC["encoder"], "_target_": "mine.InternImage"}),
            "encoder=sa2depth.models.encoders.InternImage,",
            "encoder=mine.InternImage:",
        ),
        (
            {"min_depth": 0.1, "max_depth": 10.0, **PRESETS["sa2depth_t"]},
            "encoder.channels=16, encoder.depths=[1, 1, 2, 1], encoder.groups=[1, 2, 4, 8] and ",
            "encoder.channels=64, encoder.depths=[4, 4, 18, 4], encoder.groups=[4, 8, 16, 32]:",
        ),
    ],
)  # fmt: skip
def test_differences_of_another_network_are_named(last, spec, before, now):
    with pytest.raises(CheckpointError) as error:
        read_training_state(last).check_network(spec)
    message = str(error.value)
    assert f"resume={last} was trained with " in message
    trained, _, this = message.partition("this run has")
    assert before in trained
    assert now in this
    assert "\n" not in message


def test_a_shared_model_names_the_checkpoint_of_its_run(last, tmp_path):
    model = save_model(
        create_model("sa2depth_nano", min_depth=0.1, max_depth=10.0), tmp_path / "model.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"holds no training state; name a run's checkpoints/last\.ckpt"
    ):
        read_training_state(model)
    own = tmp_path / "checkpoints/last.ckpt"
    own.parent.mkdir()
    own.write_bytes(last.read_bytes())
    for path in (model, tmp_path, own.parent, tmp_path / "nowhere.ckpt"):
        with pytest.raises(CheckpointError, match=re.escape(f"; name {own}")):
            read_training_state(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\x13garbage" * 99, "is not a checkpoint"),
        (b"\x80\x04garbage" * 99, "is refused"),
        (b"<html>sign in", "is a web page"),
        (b"PK\x03", "is refused"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (None, "does not exist"),
    ],
)
def test_other_files_get_one_line(tmp_path, content, told):
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    refused(path, told)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_cut_off_files_get_one_line(last, tmp_path, share, zipped):
    path = tmp_path / "cut.ckpt"
    torch.save(torch.load(last, weights_only=True), path, _use_new_zipfile_serialization=zipped)
    assert read_training_state(path).steps == 6
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "")


def test_pickled_code_is_refused_without_advice_to_trust_it(tmp_path):
    torch.save({"state_dict": Path("x")}, tmp_path / "code.ckpt")
    refused(tmp_path / "code.ckpt", "can run any code")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"optimizer_states": None, "lr_schedulers": None}, "(no optimizer_states, lr_schedulers)"),
        ({"loops": None}, "(no loops)"),
        ({"loops": {}}, "is a damaged Lightning checkpoint"),
        ({"loops": [1]}, "is a damaged Lightning checkpoint"),
        ({"hyper_parameters": {"lr": 1}}, "of another program"),
        ({"hyper_parameters": None}, "of another program"),
        ({"pytorch-lightning_version": None}, "is not a Lightning checkpoint"),
    ],
)
def test_checkpoints_without_our_training_state(altered, content, told):
    refused(altered(**content), told)


def refused(path, told):
    with pytest.raises(CheckpointError, match=re.escape(f"resume={path} ")) as error:
        read_training_state(path)
    message = str(error.value)
    assert told in message
    assert "; name a run's checkpoints/last.ckpt" in message
    assert "\n" not in message
    assert "weights_only" not in message
