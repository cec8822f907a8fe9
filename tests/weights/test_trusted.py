"""Checkpoints that name classes outside of the package: nothing is imported until the reader trusts it."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import sa2depth
from sa2depth.cli import app
from sa2depth.errors import CheckpointError, ConfigError
from sa2depth.models import PRESETS, UntrustedError, build_model
from sa2depth.weights import save_model

NETS = """
from sa2depth.models import ConvDecoder
from sa2depth.models.encoders import InternImage
from json import dumps
import os

class Encoder(InternImage):
    pass

class Decoder(ConvDecoder):
    pass

def failing(channels):
    raise KeyError("my own mistake")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The spec of a network with an encoder from the user's own package, which creates a file when imported."""
    folder = tmp_path / "src" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    )
    (folder / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    preset = PRESETS["sa2depth_nano"]
    spec = {
        **preset,
        "encoder": {**preset["encoder"], "_target_": "mine.nets.Encoder"},
        "min_depth": 0.1,
        "max_depth": 10.0,
    }
    yield spec, folder / "imported"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.fixture
def file(mine, tmp_path):
    """A checkpoint of that network, with the package not imported."""
    spec, imported = mine
    torch.manual_seed(0)
    path = save_model(build_model(spec, trusted=None), tmp_path / "own.safetensors")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    imported.unlink()
    return path, imported


def test_a_stranger_is_not_imported_and_every_way_to_trust_it_is_named(file):
    path, imported = file
    with pytest.raises(CheckpointError) as caught:
        sa2depth.load_model(path)
    said = str(caught.value)
    assert not imported.exists()
    assert said.startswith(f"{path} names mine.nets.Encoder, which is not trusted")
    for option in ("trusted=mine (sa2depth.eval)", "--trusted mine", "load_model(..., trusted=['mine'])"):
        assert option in said


@pytest.mark.parametrize("trusted", ["mine", "mine.", ["other", "mine"], ("mine.nets",), "mine.nets.Encoder"])
def test_trusted_it_loads(file, trusted):
    path, imported = file
    model = sa2depth.load_model(path, trusted=trusted)
    assert imported.exists()
    assert type(model.encoder).__module__ == "mine.nets"
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 64)).depth.isfinite().all()


@pytest.mark.parametrize("trusted", ["min", "mine.net", "mine.nets.Encoder2", "nets"])
def test_trust_ends_at_dots(file, trusted):
    path, imported = file
    with pytest.raises(CheckpointError, match="not trusted"):
        sa2depth.load_model(path, trusted=trusted)
    assert not imported.exists()


def test_names_reached_through_a_trusted_package_are_not_trusted(mine, tmp_path):
    spec, _ = mine
    model = build_model(spec, trusted=["sa2depth", "mine"])
    for target, really in (("mine.nets.os.mkdir", "posix.mkdir"), ("mine.nets.dumps", "json.dumps")):
        header = {
            "format": 1,
            "spec": {**spec, "encoder": {"_target_": target, "path": str(tmp_path / "made")}},
        }
        path = tmp_path / "evil.safetensors"
        save_file(dict(model.state_dict()), path, metadata={"sa2depth": json.dumps(header)})
        with pytest.raises(
            CheckpointError, match=rf"names {target} \(really {really}\), which is not trusted"
        ):
            sa2depth.load_model(path, trusted="mine")
        assert not (tmp_path / "made").exists()


def test_several_packages_are_named_at_once(mine):
    spec, imported = mine
    with pytest.raises(UntrustedError) as caught:
        build_model({**spec, "decoder": {"_target_": "other.Decoder", "_partial_": True}})
    assert caught.value.names == ["mine.nets.Encoder", "other.Decoder"]
    assert not imported.exists()


def test_our_own_functions_that_are_not_layers_are_never_trusted(mine, tmp_path):
    spec, _ = mine
    model = build_model(spec, trusted=None)
    header = {"format": 1, "spec": {**spec, "decoder": {"_target_": "sa2depth.weights.save_model"}}}
    path = tmp_path / "evil.safetensors"
    save_file(dict(model.state_dict()), path, metadata={"sa2depth": json.dumps(header)})
    with pytest.raises(
        CheckpointError, match=r"sa2depth\.weights\.save_model, which is not trusted.*was altered"
    ):
        sa2depth.load_model(path, trusted="mine")


def test_an_error_in_the_users_own_class_names_its_line(mine):
    spec, _ = mine
    with pytest.raises(ConfigError, match=r"my own mistake.*raised at .*nets\.py:14"):
        build_model({**spec, "decoder": {"_target_": "mine.nets.failing", "_partial_": True}}, trusted=None)


def test_a_missing_package_is_named(file):
    with pytest.raises(
        CheckpointError, match=r"own\.safetensors .*Python cannot find a package 'elsewhere'.*PYTHONPATH"
    ):
        _renamed(file[0], "elsewhere")


def _renamed(path, package):
    from safetensors import safe_open

    with safe_open(path, "pt") as stream:
        header = stream.metadata()["sa2depth"].replace("mine.nets", f"{package}.nets")
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"sa2depth": header})
    return sa2depth.load_model(path, trusted=package)


def test_the_commands_accept_trusted(file, tmp_path):
    path, imported = file
    convert = ["convert", str(path), str(tmp_path / "copy.safetensors")]
    refused = CliRunner().invoke(app, convert)
    assert refused.exit_code == 2
    assert "mine.nets.Encoder, which is not trusted" in refused.output
    assert not imported.exists()
    done = CliRunner().invoke(app, [*convert, "--trusted", "other", "--trusted", "mine"])
    assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(
        app, ["predict", "x.png", "-o", str(tmp_path), "-c", str(path), "--trusted", "a b"]
    )
    assert wrong.exit_code == 2
    assert "--trusted: 'a b' cannot be the name of a package" in wrong.output
