"""A network that is easy to predict, batches for it, and the `DepthModule` around it."""

from typing import NamedTuple

import torch

from sa2depth.lit import DepthModule
from sa2depth.losses import SILog
from sa2depth.metrics import Protocol


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
        self.seen = tuple(image.shape[-2:])
        across = torch.linspace(0, self.ramp, image.shape[-1])
        return Output(image[:, :1] * self.factor + across)


class Mix(torch.nn.Conv2d):
    def forward(self, image):
        return super().forward(image)


class Encoded(Brightness):
    """The network with an encoder of our own, which is compiled; layers of PyTorch itself would not be."""

    def __init__(self):
        super().__init__()
        self.encoder = Mix(3, 3, 1)

    def forward(self, image):
        return super().forward(self.encoder(image).square())


def protocol_of(**changes):
    return Protocol(**{"name": "test", "version": 1, "min_depth": 0.1, "max_depth": 10.0, **changes})


def batch_of(depth=1.0, size=(32, 64), first=0):
    return {
        "image": torch.rand(2, 3, *size) * 0.5 + 0.5,
        "depth": torch.full((2, 1, *size), depth),
        "id": [f"{first}", f"{first + 1}"],
        "index": torch.arange(first, first + 2),
    }


def module_of(model=None, **options):
    options = {"protocol": protocol_of(), "min_depth": 0.5, "max_depth": 5.0, **options}
    module = DepthModule(model or Brightness(), SILog(), **options)
    module.log = lambda *_args, **_kwargs: None
    return module
