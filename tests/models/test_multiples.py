"""The network's ``stride_multiple`` holds in training, scoring and prediction, at any image size."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.infer import Predictor
from sa2depth.lit import DepthModule
from sa2depth.losses import SILog
from sa2depth.metrics import Protocol, Sizes
from sa2depth.models import BinHead, ConvDecoder, ConvHead, SA2Depth, ScanHead, SelectiveAttentionDecoder

MULTIPLES = (14, 16, 24, 56, 64)


class Patches(nn.Module):
    """A pyramid from one grid of patches, as in plain vision transformers; its finest map is not at 1/4."""

    def __init__(self, multiple=14, channels=(8, 8, 16, 16)):
        super().__init__()
        self.channels = list(channels)
        self.stride_multiple = multiple
        self.patch = nn.Conv2d(3, 8, multiple, multiple)
        self.maps = nn.ModuleList(nn.Conv2d(8, c, 1) for c in channels)

    def forward(self, image):
        assert not any(side % self.stride_multiple for side in image.shape[2:]), (
            "the size is not a multiple of stride_multiple"
        )
        grid, count = self.patch(image), len(self.maps)
        sizes = [2.0 ** (count - 1 - place) for place in range(count)]
        return [m(F.interpolate(grid, scale_factor=s)) for m, s in zip(self.maps, sizes, strict=True)]


def network(multiple, channels=(8, 8, 16, 16), decoder=None, head=ScanHead):
    torch.manual_seed(0)
    return SA2Depth(
        Patches(multiple, channels),
        decoder or functools.partial(SelectiveAttentionDecoder, dim_head=8),
        functools.partial(BinHead, hidden=8, bins=8),
        functools.partial(head, hidden=8, bins=8),
        min_depth=0.1,
        max_depth=10.0,
    )


def rules(**changes):
    return Protocol(
        **{"name": "test", "version": 1, "min_depth": 0.1, "max_depth": 10.0, "input": "pad", **changes}
    )


def up(side, multiple):
    return side + -side % multiple


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_depth_has_the_images_size_and_reaches_every_weight(multiple):
    model = network(multiple)
    assert model.stride_multiple == multiple
    depth = model(torch.rand(2, 3, multiple, 2 * multiple)).depth
    assert depth.shape == (2, 1, multiple, 2 * multiple)
    depth.log().var().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize(
    ("policy", "seen"),
    [
        ({"input": "pad"}, (50, 70)),
        ({"input": "resize", "input_size": (33, 45)}, (33, 45)),
        ({"input": "max_side", "max_side": 35}, (25, 35)),
        ({"input": "bottom_centre", "input_size": (40, 60), "frame": (40, 60)}, (40, 60)),
        ({"flip": True}, (50, 70)),
    ],
)
def test_validation_and_test_pad_to_it(multiple, policy, seen):
    module = DepthModule(network(multiple).eval(), SILog(), protocol=rules(**policy))
    batch = {"image": torch.rand(1, 3, 50, 70), "depth": torch.rand(1, 1, 50, 70) + 1, "id": ["a"]}
    with torch.no_grad():
        view, depth = module.score(batch | {"index": torch.arange(1)})
    assert depth.shape == view.truth.shape
    frame = policy.get("frame", (50, 70))
    assert view.sizes == Sizes((50, 70), frame, (up(seen[0], multiple), up(seen[1], multiple)))


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_the_predictor_pads_to_it(multiple):
    photo = np.random.RandomState(0).randint(0, 256, (50, 70, 3), np.uint8)
    predictor = Predictor(network(multiple).eval().double())
    prediction = predictor(photo)
    assert prediction.depth.shape == (50, 70)
    with torch.no_grad():
        image = torch.from_numpy(photo).permute(2, 0, 1)[None].double() / 255
        scored = DepthModule(network(multiple).eval().double(), protocol=rules())(image)
    np.testing.assert_allclose(prediction.depth, scored[0, 0].numpy(), rtol=1e-5)


def test_training_images_of_another_size_are_refused_with_it():
    module = DepthModule(network(14), SILog(), protocol=rules())
    batch = {"image": torch.rand(1, 3, 32, 32), "depth": torch.ones(1, 1, 32, 32), "id": ["a"]}
    with pytest.raises(ShapeError, match=r"training images are 32x32 .*multiples of 14"):
        module.training_step(batch, 0)
    batch = {"image": torch.rand(1, 3, 28, 42), "depth": torch.ones(1, 1, 28, 42), "id": ["a"]}
    module.log = lambda *_args, **_kwargs: None
    assert module.training_step(batch, 0).isfinite()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [(None, ScanHead), (ConvDecoder, ConvHead)])
def test_pyramids_of_fewer_levels_work(count, parts):
    decoder, head = parts
    model = network(16, (8, 8, 16, 16)[-count:], decoder, head).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 48)).depth.shape == (1, 1, 32, 48)


def test_five_levels_are_refused():
    with pytest.raises(ConfigError, match=r"at most 4 levels, and the encoder has 5.*decoder=conv"):
        network(16, (8,) * 5)
    with torch.no_grad():
        model = network(16, (8,) * 5, ConvDecoder, ConvHead).eval()
        assert model(torch.rand(1, 3, 16, 32)).depth.shape == (1, 1, 16, 32)


def test_maps_that_do_not_double_are_refused():
    model = network(16)
    model.encoder.forward = lambda image: [torch.rand(1, 8, n, n) for n in (8, 4, 4, 4)]
    with pytest.raises(
        ShapeError, match=r"4 maps of 8x8, 4x4, 4x4, 4x4: it takes 4, .*twice the sides of the next"
    ):
        model(torch.rand(1, 3, 32, 32))
    model.encoder.forward = lambda image: [torch.rand(1, 8, n, n) for n in (8, 4, 2)]
    with pytest.raises(ShapeError, match=r"3 maps of 8x8, 4x4, 2x2: it takes 4"):
        model(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("multiple", [0, -32, 14.0, "32", True, None])
def test_impossible_multiples_are_refused(multiple):
    encoder = Patches(16)
    encoder.stride_multiple = multiple
    with pytest.raises(ConfigError, match=r"the encoder Patches has stride_multiple="):
        SA2Depth(encoder, ConvDecoder, BinHead, ConvHead, min_depth=0.1, max_depth=10.0)


@pytest.mark.parametrize("channels", [None, [], 64, "64"])
def test_an_encoder_must_have_channels(channels):
    encoder = Patches(16)
    encoder.channels = channels
    with pytest.raises(ConfigError, match=r"the encoder Patches must have an attribute channels"):
        SA2Depth(encoder, ConvDecoder, BinHead, ConvHead, min_depth=0.1, max_depth=10.0)
