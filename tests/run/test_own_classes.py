"""Classes of a user's own package, one per group, train, resume, evaluate and predict with the real commands."""

import json

import pytest

pytestmark = pytest.mark.slow

PACKAGE = """
import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from sa2depth.data import DepthDataModule
from sa2depth.models import BinHead, ConvHead, SA2Depth, SelectiveAttentionDecoder
from sa2depth.nn import Mlp, WindowAttention


class Patches(nn.Module):
    def __init__(self, width: int = 8, patch: int = 14):
        super().__init__()
        self.channels = [width] * 4
        self.stride_multiple = patch
        self.patch = nn.Conv2d(3, width, patch, patch)

    def forward(self, image):
        grid = self.patch(image)
        return [F.interpolate(grid, scale_factor=scale) for scale in (8.0, 4.0, 2.0, 1.0)]


class Model(SA2Depth):
    pass


class Decoder(SelectiveAttentionDecoder):
    pass


class Attention(WindowAttention):
    pass


class FeedForward(Mlp):
    pass


class Bins(BinHead):
    pass


class Head(ConvHead):
    pass


class Loss(nn.Module):
    def forward(self, prediction, target, valid):
        return (prediction - target).abs()[valid].mean()


def optimiser(model, lr: float):
    return torch.optim.SGD(model.parameters(), lr)


def schedule(optimizer, total_steps):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


class Data(DepthDataModule):
    pass


class Callback(lightning.Callback):
    def on_fit_start(self, trainer, pl_module):
        print("my callback was called")


class Logger(CSVLogger):
    pass
"""
FILES = {
    "model": "# @package _global_\nmodel:\n  _target_: mypkg.Model\n",
    "encoder": "_target_: mypkg.Patches\nwidth: 8\n",
    "decoder": "_target_: mypkg.Decoder\n_partial_: true\ndim_head: 8\n",
    "attention": "# @package decoder.attention\n_target_: mypkg.Attention\n_partial_: true\nwindow: 4\n",
    "feed_forward": "# @package decoder.feed_forward\n_target_: mypkg.FeedForward\n_partial_: true\n",
    "bins": "_target_: mypkg.Bins\n_partial_: true\nhidden: 8\nbins: 8\n",
    "head": "_target_: mypkg.Head\n_partial_: true\nhidden: 8\nbins: 8\n",
    "loss": "_target_: mypkg.Loss\n",
    "optim": "_target_: mypkg.optimiser\n_partial_: true\nlr: 0.01\n",
    "schedule": "_target_: mypkg.schedule\n_partial_: true\n",
    "data": "defaults:\n  - synthetic\n  - _self_\n_target_: mypkg.Data\n",
    "callbacks": "defaults:\n  - default\n  - _self_\nmine:\n  _target_: mypkg.Callback\n",
    "logger": "csv:\n  _target_: mypkg.Logger\n  save_dir: ${paths.output_dir}\n  name: null\n  version: ''\n",
}
SCENES = (
    *(
        "data.train.kind=streets",
        "data.train.height=42",
        "data.train.width=56",
        "data.test.height=50",
        "data.test.count=3",
    ),
    *("data.num_workers=0", "data.eval_batch_size=2", "trainer=cpu"),
)
TRAINING = (
    *("--config-dir", "my_conf", *(f"{group}=mine" for group in FILES), *SCENES),
    *("data.train.count=4", "data.val.count=2", "data.batch_size=2", "trainer.check_val_every_n_epoch=1"),
    *("baseline=false", "pretrained_encoder=null"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, program):
    """The folder that the commands run in, with a finished run in ``out``."""
    cwd = tmp_path_factory.mktemp("own")
    (cwd / "mypkg.py").write_text(PACKAGE)
    for group, text in FILES.items():
        (cwd / "my_conf" / group).mkdir(parents=True)
        (cwd / "my_conf" / group / "mine.yaml").write_text(text)
    done = program("sa2depth.train", *TRAINING, "trainer.max_epochs=1", "hydra.run.dir=out", cwd=cwd)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "my callback was called" in done.stdout
    assert "up to the next multiple of 14" in " ".join(done.stdout.split())
    return cwd


@pytest.mark.slow
def test_what_was_trained_is_evaluated_to_the_same_scores_when_it_is_trusted(trained, program):
    options = (
        "checkpoint=out/model.safetensors",
        "data=synthetic",
        "protocol=synthetic",
        *SCENES,
        "hydra.run.dir=again",
    )
    refused = program("sa2depth.eval", *options, cwd=trained)
    assert refused.returncode == 2
    assert "out/model.safetensors names mypkg.Model, mypkg.Patches" in refused.stderr
    assert "trusted=mypkg (sa2depth.eval)" in refused.stderr
    done = program("sa2depth.eval", *options, "trusted=mypkg", cwd=trained)
    assert done.returncode == 0, done.stderr[-3000:]
    first, again = (json.loads((trained / name / "metrics.json").read_text()) for name in ("out", "again"))
    assert again["metrics"] == pytest.approx(first["metrics"], rel=1e-5)
    assert first["input_sizes"] == again["input_sizes"] == {"56x56": 3}


@pytest.mark.slow
def test_a_frame_that_cannot_go_in_as_it_is_is_refused_before_training(trained, program):
    rules = ("protocol.input=as_is", "hydra.run.dir=never", "trainer.max_epochs=1")
    done = program("sa2depth.train", *TRAINING, *rules, cwd=trained)
    assert done.returncode == 2
    assert (
        "a 50x56 frame cannot go through the network as it is, because the network needs sides that are multiples of 14"
        in done.stderr
    )
    assert "Epoch" not in done.stdout
    assert not (trained / "never" / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_goes_on(trained, program):
    resume = ("resume=out/checkpoints/last.ckpt", "trainer.max_epochs=2", "hydra.run.dir=on")
    done = program("sa2depth.train", *TRAINING, *resume, cwd=trained)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((trained / "on" / "metrics.json").read_text())["steps"] == 4
