"""The copy for inference gives the same depth with fewer operations."""

import copy

import pytest
import torch
from torch import nn

from sa2depth.models import PRESETS, ConvHead, SelectiveAttentionDecoder, build_model, create_model
from sa2depth.nn import FlexibleAttention, MergesWeights
from sa2depth.runtime.inference import for_inference
from sa2depth.weights import from_official

CONV = {
    "decoder": {"_target_": "sa2depth.models.ConvDecoder", "_partial_": True},
    "depth_head": {"_target_": "sa2depth.models.ConvHead", "_partial_": True, "hidden": 16, "bins": 64},
}
TIMM = {
    "encoder": {
        "_target_": "sa2depth.models.encoders.TimmEncoder",
        "name": "tf_efficientnet_lite0",
        "channels": [16, 32, 64, 64],
    }
}
VARIANTS = {"nano": {}, "conv": CONV, "timm": TIMM, "timm and conv": TIMM | CONV}


def network(**changes):
    """A network with weights that give every layer an effect, and batch norms with statistics."""
    torch.manual_seed(0)
    model = build_model({**PRESETS["sa2depth_nano"], **changes, "min_depth": 1e-3, "max_depth": 10.0})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0.0, 0.3)
                norm.running_var.uniform_(0.3, 2.0)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_depth_is_the_same(variant, image):
    model, image = network(**VARIANTS[variant]).double(), image.double()
    with torch.no_grad():
        expected, actual = model(image), for_inference(model)(image)
    assert expected.depth.std() > 1e-3
    assert (actual.depth - expected.depth).abs().max() < 1e-10
    assert (actual.bin_centers - expected.bin_centers).abs().max() < 1e-10


@pytest.mark.slow
def test_the_golden_depth_is_the_same(golden):
    model = create_model("sa2depth_t", min_depth=1e-3, max_depth=10.0).double()
    model.load_state_dict(from_official(golden.official_state("t")))
    normalised = golden.input("model_t_nyu/image", (1, 3, 96, 128))
    with torch.no_grad():
        depth = for_inference(model)(normalised * model.pixel_std + model.pixel_mean).depth
    golden.check(depth, golden.load("model_t_nyu")["depth"], 1e-6)


def test_there_are_fewer_operations():
    fast = for_inference(network())
    assert not [m for m in fast.decoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(tensor.grad_fn is None for m in merging(fast) for tensor in m.merged())
    assert all(m.merged()[0] is m.merged()[0] for m in merging(fast))


def test_a_subclass_of_the_attention_gives_the_same_depth(image):
    """The subclass reads its input outside of the convolutions that the norms would be folded into."""

    class ReadsElsewhere(FlexibleAttention):
        def forward(self, x):
            return super().forward(x) * x.sigmoid()

    model, image = network().double(), image.double()
    for block in model.decoder.blocks:
        block.attention.__class__ = ReadsElsewhere
    with torch.no_grad():
        expected, fast = model(image).depth, for_inference(model)
        assert (fast(image).depth - expected).abs().max() < 1e-10
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fast.decoder.modules()) == 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.decoder.modules()) == 8


def test_weights_of_a_layer_without_traits_are_not_rounded(image):
    """The layer uses its weights in float32 even under autocast, as a scan or a softmax over bins must."""

    class Exact(ConvHead):
        def forward(self, levels):
            with torch.autocast("cpu", enabled=False):
                return super().forward([level.float() for level in levels])

    model = network(**CONV)
    model.depth_head.__class__ = Exact
    fast = for_inference(model, torch.bfloat16)
    assert {p.dtype for p in fast.depth_head.parameters()} == {torch.float32}
    assert fast.bin_head.fc1.weight.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(image).depth.isfinite().all()


def merging(model):
    return [m for m in model.modules() if isinstance(m, MergesWeights)]


def test_the_network_does_not_change():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    fast = for_inference(model, torch.bfloat16)
    assert model.training
    assert any(p.requires_grad for p in model.parameters())
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_later_changes_do_not_reach_the_copy(image):
    model = network()
    fast = for_inference(model)
    with torch.no_grad():
        before = fast(image).depth
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert torch.equal(fast(image).depth, before)


def test_a_copy_of_a_copy_is_the_same(image):
    fast = for_inference(network())
    with torch.no_grad():
        assert torch.equal(for_inference(fast)(image).depth, fast(image).depth)


def test_only_weights_of_matrix_products_are_rounded():
    fast = for_inference(network(), torch.bfloat16)
    own = {name for name, tensor in fast.state_dict().items() if tensor.dtype == torch.bfloat16}
    exact = ("gate_by_", "offset.depthwise", "offset.project")  # grouped convolutions and key coordinates
    for name, tensor in fast.state_dict().items():
        if name.endswith(".weight"):
            product = tensor.dim() == 2 or (tensor.dim() == 4 and tensor.shape[1] > 1)
            assert (name in own) == (product and not any(part in name for part in exact)), name
        elif not name.endswith(".bias"):
            assert name not in own, name
    assert "encoder.stages.0.blocks.0.dcn.input_proj.bias" in own
    assert "encoder.stages.0.blocks.0.dcn.norm.weight" not in own
    assert "decoder.blocks.0.attention.query.weight" in own
    assert "decoder.blocks.0.attention.offset.project.weight" not in own
    assert "depth_head.scan.in_proj.weight" in own
    assert "depth_head.scan.x_proj_weight" not in own
    types = {type(m).__name__: {t.dtype for t in m.merged()} for m in merging(fast)}
    assert types.pop("DeformableConv") == {torch.bfloat16}
    assert set().union(*types.values()) == {torch.float32}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rounded_weights_work_under_autocast(variant, image):
    model = network(**VARIANTS[variant])
    fast = for_inference(model, torch.bfloat16)
    with torch.no_grad():
        exact = model(image).depth
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, actual = model(image).depth, fast(image).depth
    assert actual.dtype == torch.float32
    # as close to the exact depth as autocast on the original network
    rounding = (expected - exact).abs().mean()
    assert rounding > 0
    assert (actual - exact).abs().mean() < 1.5 * rounding


def test_norms_are_folded_through_the_sampling_of_keys():
    """A single folded block whose key grid is one key wide and whose points are clamped to the border."""
    torch.manual_seed(0)
    model = network().double()
    assert isinstance(model.decoder, SelectiveAttentionDecoder)
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.attention.offset.project.bias.fill_(5.0)  # beyond the border
        image = torch.rand(1, 3, 32, 64, dtype=torch.float64)
        assert (for_inference(model)(image).depth - model(image).depth).abs().max() < 1e-10
