"""Whole models are saved and loaded bit by bit in every format, and every other file gets an error."""

import copy
import json
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from sa2depth.errors import CheckpointError
from sa2depth.models import PRESETS, build_model, create_model
from sa2depth.version import __version__
from sa2depth.weights import load_model, read_checkpoint, save_model
from sa2depth.weights.official import official_name


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0).eval()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def lightning_file(model, path, **hyper):
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "global_step": 40,
        "state_dict": {**state, "loss.weight": torch.ones(1)},
        "hyper_parameters": {"spec": model.spec, **hyper},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}],
    }
    torch.save(content, path)
    return path


def same(one, other, image):
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with torch.inference_mode():
        assert torch.equal(one(image).depth, other(image).depth)


def test_our_file_round_trip_is_bit_equal(model, image, tmp_path):
    path = save_model(model, tmp_path / "deep" / "nano.safetensors", extra={"abs_rel": 0.1})
    loaded = load_model(path)
    same(model, loaded, image)
    assert not loaded.training
    assert loaded.spec == model.spec
    assert (loaded.min_depth, loaded.max_depth) == (0.1, 8.0)


def test_header_holds_everything_the_function_depends_on(model, tmp_path):
    path = save_model(model, tmp_path / "nano.safetensors", extra={"protocol": "nyu_eigen"})
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["sa2depth"])
    assert header["spec"] == model.spec
    assert header["version"] == __version__
    assert header["format"] == 1
    checkpoint = read_checkpoint(path)
    assert (checkpoint.kind, checkpoint.architecture) == ("sa2depth", "sa2depth_nano")
    assert checkpoint.extra == {"protocol": "nyu_eigen"}


def test_lightning_round_trip_is_bit_equal(model, image, tmp_path):
    path = lightning_file(model, tmp_path / "last.ckpt")
    same(model, load_model(path), image)
    assert read_checkpoint(path).kind == "lightning"


def released_state(model):
    return {official_name(name): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("container", ["flat", "model", "training"])
def test_released_containers_are_bit_equal(model, image, tmp_path, container):
    state = released_state(model)
    path = tmp_path / "released.pth"
    if container == "flat":
        torch.save(state, path)
    else:
        content = {"model": {f"module.{name}": tensor for name, tensor in state.items()}}
        if container == "training":
            steps = np.zeros(9, dtype=np.int32)
            content |= {"global_step": 7, "optimizer": {"state": {}}, "best_eval_steps": steps}
        torch.save(content, path)
    loaded = load_model(path, min_depth=0.1, max_depth=8.0)
    same(model, loaded, image)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.kind, checkpoint.architecture) == ("released", "sa2depth_nano")
    assert loaded.spec == model.spec


def test_released_file_needs_its_depth_range(model, tmp_path):
    path = tmp_path / "released.pth"
    torch.save(released_state(model), path)
    with pytest.raises(CheckpointError, match=r"give min_depth and max_depth in metres.*0\.1.*1e-3.*9 %"):
        load_model(path)
    with pytest.raises(CheckpointError, match=r"give min_depth in metres"):
        load_model(path, max_depth=10)


def test_released_file_with_a_tensor_missing(model, tmp_path):
    state = released_state(model)
    state.pop("MLBP.norm.weight")
    path = tmp_path / "released.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"released\.pth.*missing: bin_head\.norm\.weight"):
        load_model(path, min_depth=0.1, max_depth=8)


def test_device_is_respected(model, tmp_path):
    path = save_model(model, tmp_path / "nano.safetensors")
    assert next(load_model(path, device="cpu").parameters()).device.type == "cpu"


def test_depth_range_may_be_repeated_but_not_contradicted(model, tmp_path):
    path = save_model(model, tmp_path / "nano.safetensors")
    assert load_model(path, min_depth=0.1, max_depth=8).max_depth == 8
    with pytest.raises(CheckpointError, match=r"trained with max_depth 8 m, but 10 m was given"):
        load_model(path, max_depth=10)


def test_file_without_range_names_what_is_missing(model, tmp_path):
    stripped = copy.copy(model)
    stripped.spec = {key: value for key, value in model.spec.items() if key != "min_depth"}
    path = save_model(stripped, tmp_path / "nano.safetensors")
    with pytest.raises(CheckpointError, match=r"give min_depth in metres.*0\.1.*1e-3"):
        load_model(path)
    assert load_model(path, min_depth=0.1).min_depth == 0.1


def test_preset_name_has_no_weights():
    for name in PRESETS:
        with pytest.raises(CheckpointError, match=f"no weights are published for '{name}'.*create_model"):
            load_model(name)


def test_missing_file_names_its_neighbours(model, tmp_path):
    save_model(model, tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*bets\.safetensors.*best\.safetensors"):
        load_model(tmp_path / "bets.safetensors")
    with pytest.raises(CheckpointError, match="does not exist either"):
        load_model(tmp_path / "nowhere" / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"is a folder.*best\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pth", b"", "is empty"),
        ("model.pth", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        ("model.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4, "is not a checkpoint"),
        ("notes.txt", b"hello, this is text and no checkpoint\n" * 20, "is not a checkpoint"),
        ("list.json", b'{"a": 1}', "is not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "legacy"])
def test_truncated_files(model, tmp_path, kind, keep):
    path = tmp_path / f"cut.{kind}"
    if kind == "safetensors":
        save_model(model, path)
    elif kind == "ckpt":
        lightning_file(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=r"cut off") as caught:
        load_model(path)
    assert str(path) in str(caught.value)


class Exploit:
    """An object whose unpickling would create a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_code_is_refused_and_never_run(tmp_path):
    trap = tmp_path / "executed"
    for name, write in (("new.pth", torch.save), ("plain.pth", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        path = tmp_path / name
        write({"model": {"w": torch.ones(1).tolist()}, "x": Exploit(str(trap))}, path)
        with pytest.raises(CheckpointError, match=r"refused.*weights_only=False"):
            load_model(path)
    assert not trap.exists()


def test_numpy_arrays_beside_the_weights_are_no_obstacle(model, image, tmp_path):
    # the released training script saves these in its files
    steps = np.zeros(9, dtype=np.int32)
    path = lightning_file(model, tmp_path / "last.ckpt", best_eval_steps=steps, best=np.float64(0.1))
    same(model, load_model(path), image)


def test_checkpoint_of_another_program(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"pytorch-lightning_version": "2.0", "state_dict": {"net.w": torch.ones(2)}}, path)
    with pytest.raises(CheckpointError, match="another program"):
        load_model(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_model(path)


def test_foreign_state_dict_is_named(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.ones(4, 3, 7, 7), "fc.bias": torch.ones(10)}, path)
    with pytest.raises(CheckpointError, match=r"resnet\.pth is not an SA2Depth model"):
        load_model(path)


def test_mismatch_is_counted_and_named(model, tmp_path):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = len(state)
    dropped = next(iter(state))
    del state[dropped]
    changed = list(state)[5]
    state[changed] = torch.zeros(3, 1, 4)
    state["surplus.weight"] = torch.ones(1)
    path = tmp_path / "odd.safetensors"
    save_file(state, path, metadata={"sa2depth": json.dumps({"format": 1, "spec": model.spec})})
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    text = str(caught.value)
    assert f"{total - 2} of {total} tensors match" in text
    assert dropped in text
    assert "surplus.weight" in text
    assert f"{changed} is (3, 1, 4) in the file" in text


def test_header_of_the_future_or_broken(model, tmp_path):
    path = tmp_path / "future.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"sa2depth": json.dumps({"format": 99, "spec": {}})})
    with pytest.raises(CheckpointError, match=r"format 99.*upgrade"):
        load_model(path)
    save_file({"a": torch.ones(1)}, path, metadata={"sa2depth": "{"})
    with pytest.raises(CheckpointError, match="damaged header"):
        load_model(path)


def test_strangers_targets_are_not_called(model, tmp_path):
    path = tmp_path / "evil.safetensors"
    for target in ("os.mkdir", "sa2depth.models.build.instantiate", "sa2depth.weights.save_model"):
        spec = copy.deepcopy(model.spec)
        spec["encoder"] = {"_target_": target, "path": str(tmp_path / "executed")}
        header = {"sa2depth": json.dumps({"format": 1, "spec": spec})}
        save_file(dict(model.state_dict()), path, metadata=header)
        with pytest.raises(CheckpointError, match=r"evil\.safetensors.*not trusted"):
            load_model(path)
        assert not (tmp_path / "executed").exists()


def test_models_that_cannot_be_saved(model, tmp_path):
    with pytest.raises(CheckpointError, match="does not carry its architecture"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="plain JSON"):
        save_model(model, tmp_path / "a.safetensors", extra={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = save_model(model, tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sa2depth.weights.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


def test_reader_never_sees_half_a_file(model, tmp_path):
    path = save_model(model, tmp_path / "a.safetensors")
    failures, stop = [], threading.Event()

    def keep_reading():
        while not stop.is_set():
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                failures.append(error)

    reader = threading.Thread(target=keep_reading)
    reader.start()
    for _ in range(10):
        save_model(model, path)
    stop.set()
    reader.join()
    assert failures == []


def test_model_with_timm_encoder_round_trip(image, tmp_path):
    spec = copy.deepcopy(PRESETS["sa2depth_nano"]) | {"min_depth": 0.1, "max_depth": 8.0}
    spec["encoder"] = {
        "_target_": "sa2depth.models.encoders.TimmEncoder",
        "name": "mobilenetv3_small_050",
        "channels": [16, 32, 64, 128],
    }
    model = build_model(spec).eval()
    path = save_model(model, tmp_path / "timm.safetensors")
    same(model, load_model(path), image)
    assert read_checkpoint(path).architecture == "SA2Depth with TimmEncoder mobilenetv3_small_050"


@given(st.binary(min_size=1, max_size=64))
@example(b"abc")
@example(b"a")
@example(b"]")
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_raise_only_checkpoint_errors(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load_model(path)
