"""The LightningModule: loss on valid pixels, mirror averaging, clear words for a broken loss."""

from typing import NamedTuple

import pytest
import torch

from sa2depth.errors import UserError
from sa2depth.lit import DepthModule
from sa2depth.losses import SILog
from sa2depth.metrics import Protocol, flip_average


class Output(NamedTuple):
    depth: torch.Tensor


class Brightness(torch.nn.Module):
    """Predicts ``factor * red``, plus a ramp that mirroring cannot undo."""

    def __init__(self, ramp=0.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.ramp = ramp
        self.spec = {"name": "brightness"}

    def forward(self, image):
        across = torch.linspace(0, self.ramp, image.shape[-1])
        return Output(image[:, :1] * self.factor + across)


def _protocol(**changes):
    return Protocol(**{"name": "test", "version": 1, "min_depth": 0.1, "max_depth": 10.0, **changes})


def _batch(depth=1.0):
    image = torch.rand(2, 3, 8, 40) + 0.5
    return {
        "image": image,
        "depth": torch.full((2, 1, 8, 40), depth),
        "id": ["a", "b"],
        "index": torch.arange(2),
    }


def _module(model=None, **options):
    options = {"protocol": _protocol(), "min_depth": 0.5, "max_depth": 5.0, **options}
    module = DepthModule(model or Brightness(), SILog(), **options)
    module.log = lambda *_args, **_kwargs: None
    return module


def test_the_loss_sees_only_depths_inside_the_range():
    module, batch = _module(), _batch()
    batch["depth"][0], batch["depth"][1] = 2.0, 0.0
    inside = module.training_step(batch, 0)
    for depth in (0.0, 0.4, 5.5, 100.0):
        batch["depth"][1] = depth
        assert torch.equal(module.training_step(batch, 0), inside), depth
    batch["depth"][1] = 4.9
    assert not torch.equal(module.training_step(batch, 0), inside)


def test_an_image_without_truth_gives_a_zero_loss_with_gradients():
    module = _module()
    loss = module.training_step(_batch(depth=0.0), 0)
    loss.backward()
    assert loss == 0
    assert module.model.factor.grad == 0


def test_a_broken_loss_names_the_images_and_a_way_out():
    module, batch = _module(), _batch()
    batch["image"][1, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match=r"nan at step 0, on the images a, b.*debug=anomaly"):
        module.training_step(batch, 0)


def test_flip_averaging_follows_the_protocol():
    image = _batch()["image"]
    model = Brightness(ramp=3.0)
    plain = _module(model)(image)
    flipped = _module(model, protocol=_protocol(flip=True))(image)
    assert torch.equal(plain, model(image).depth)
    assert torch.equal(flipped, flip_average(plain, model(image.flip(-1)).depth.flip(-1)))
    assert not torch.equal(plain, flipped)


def test_keeps_as_many_examples_as_asked_for():
    module = _module(examples=3)
    for _ in range(2):
        module.test_step(_batch(), 0)
        module.test_metrics.reset()
    assert [example.id for example in module.examples] == ["a", "b", "a"]
    assert module.frame == (8, 40)
    assert module.examples[0].image.shape == (3, 8, 40)
    assert module.examples[0].prediction.shape == (8, 40)


def test_the_spec_travels_in_the_checkpoint():
    assert _module().hparams["spec"] == {"name": "brightness"}
    assert _module().hparams["protocol"] == "test"


def test_a_module_for_evaluation_says_what_it_lacks():
    module = DepthModule(Brightness(), protocol=_protocol())
    with pytest.raises(RuntimeError, match="no loss"):
        module.training_step(_batch(), 0)
    with pytest.raises(RuntimeError, match="no optimiser"):
        module.configure_optimizers()
