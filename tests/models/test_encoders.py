import copy

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.models import PRESETS, build_model
from sa2depth.models.encoders import InternImage, TimmEncoder


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite0", "convnext_atto"]
)
def test_timm_pyramid_by_name(name):
    encoder = TimmEncoder(name, channels=[16, 32, 64, 128])
    features = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3),
    ]  # fmt: skip
    sum(f.square().mean() for f in features).backward()
    assert all(p.grad is not None for p in encoder.projections.parameters())
    assert sum(p.grad is not None for p in encoder.backbone.parameters()) > 10


def test_timm_keeps_its_own_channels_without_projection():
    encoder = TimmEncoder("resnet18")
    assert encoder.channels == [64, 128, 256, 512]
    assert [f.shape[1] for f in encoder(torch.rand(1, 3, 64, 64))] == encoder.channels


def test_timm_encoders_have_their_own_pixel_statistics():
    assert TimmEncoder("tf_efficientnet_lite0").pixel_mean == (0.5, 0.5, 0.5)
    assert TimmEncoder("resnet18").pixel_mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_whole_model_on_a_timm_encoder(name):
    spec = copy.deepcopy({**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10.0})
    spec["encoder"] = {
        "_target_": "sa2depth.models.encoders.TimmEncoder",
        "name": name,
        "channels": [16, 32, 64, 128],
    }
    model = build_model(spec)
    output = model(torch.rand(2, 3, 64, 96))
    output.depth.log().var().backward()
    assert output.depth.isfinite().all()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert torch.allclose(model.pixel_mean.flatten(), torch.tensor(model.encoder.pixel_mean))


def test_unknown_network_suggests_similar_names():
    with pytest.raises(ConfigError, match="resnet18"):
        TimmEncoder("resnet81")


def test_network_without_pyramid_is_refused():
    with pytest.raises(ConfigError, match="pyramid"):
        TimmEncoder("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "multiple"), [("swin_tiny_patch4_window7_224", 32), ("maxvit_rmlp_pico_rw_256", 256)]
)
def test_the_multiple_is_that_of_timms_network(name, multiple):
    """Swin was made only for 224x224; MaxViT's windows must tile every map."""
    with torch.device("meta"):
        encoder = TimmEncoder(name).eval()
        assert encoder.stride_multiple == multiple
        levels = encoder(torch.rand(1, 3, multiple, 2 * multiple))
    assert [tuple(level.shape[2:]) for level in levels] == [
        (multiple // stride, 2 * multiple // stride) for stride in (4, 8, 16, 32)
    ]


def test_a_network_for_one_size_only_is_refused():
    with pytest.raises(ConfigError, match=r"'coatnet_pico_rw_224' takes images of one size only"):
        TimmEncoder("coatnet_pico_rw_224")


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ConfigError, match="4 channels"):
        TimmEncoder("resnet18", channels=[8, 16])


def test_internimage_groups_must_divide():
    with pytest.raises(ConfigError, match="groups"):
        InternImage(16, (1, 1, 1, 1), (3, 2, 4, 8))


def test_internimage_drop_path_grows_linearly():
    encoder = InternImage(16, (1, 1, 2, 1), (1, 2, 4, 8), drop_path_rate=0.4)
    rates = [float(b.drop_path.rate) for stage in encoder.stages for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("post_norm", [False, True])
def test_internimage_post_norm_has_no_stage_norm(post_norm):
    encoder = InternImage(16, (1, 1, 1, 1), (1, 2, 4, 8), post_norm=post_norm, layer_scale=1e-2)
    names = set(encoder.state_dict())
    assert ("stages.0.norm.weight" in names) != post_norm
    assert float(encoder.stages[0].blocks[0].scale1[0].detach()) == pytest.approx(1e-2)
