"""Any image in, depth at its own size out."""

import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from agreement import assert_same_depth
from sa2depth.errors import ConfigError, DataError, ShapeError
from sa2depth.infer import Prediction, Predictor, pick_device
from sa2depth.infer.predictor import certainty
from sa2depth.metrics import flip_average
from sa2depth.models import create_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0).eval()
    # fresh weights predict nearly the same everywhere, so make the pixels differ
    with torch.no_grad():
        model.depth_head.score.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def exact(model):
    """The model in float64, in which two ways to compute the same depth do not swap ranks of keys."""
    return copy.deepcopy(model).double()


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((160, 96)))


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (32, 32), (33, 31), (97, 130)])
@pytest.mark.parametrize("flip", [False, True])
def test_prediction_has_the_size_of_the_input(model, size, flip):
    image = np.random.default_rng(0).random((*size, 3))
    prediction = Predictor(model, flip=flip)(image)
    assert prediction.size == prediction.confidence.shape == size
    assert prediction.depth.dtype == prediction.confidence.dtype == np.float32
    assert prediction.broken_pixels == 0
    assert prediction.depth.min() >= 0.1
    assert prediction.depth.max() <= 8.0
    assert prediction.confidence.min() >= 0
    assert prediction.confidence.max() <= 1
    assert (prediction.min_depth, prediction.max_depth) == (0.1, 8.0)


def test_equals_the_model_where_nothing_is_padded(exact, photo):
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = exact(image).depth[0, 0].numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(Predictor(exact)(photo).depth, expected, rtol=1e-10)


@pytest.mark.code_path
def test_float32_is_as_near_to_float64_as_ranks_allow(model, exact, photo):
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected, plain = exact(image).depth[0, 0], model(image).depth[0, 0]
    assert_same_depth(plain, expected)
    assert_same_depth(Predictor(model)(photo).depth, expected)


def test_padding_is_cropped_away_again(exact, photo):
    odd = photo[:90, :150]
    padded = np.pad(odd, ((0, 6), (0, 10), (0, 0)), mode="reflect")
    whole = Predictor(exact)(padded).depth
    np.testing.assert_allclose(Predictor(exact)(odd).depth, whole[:90, :150], rtol=1e-10)


def test_flip_averages_with_the_mirrored_image(exact, photo):
    plain = Predictor(exact)
    direct = torch.from_numpy(plain(photo).depth)
    mirrored = torch.from_numpy(plain(photo[:, ::-1].copy()).depth[:, ::-1].copy())
    assert (direct - mirrored).abs().max() > 1e-3
    averaged = Predictor(exact, flip=True)(photo).depth
    np.testing.assert_allclose(averaged, flip_average(direct, mirrored).numpy(), rtol=1e-10)


def test_flip_makes_mirrored_images_agree_at_odd_sizes(exact, photo):
    predictor = Predictor(exact, flip=True)
    odd = photo[:70, :101]
    depth, mirrored = predictor(odd).depth, predictor(odd[:, ::-1].copy()).depth
    np.testing.assert_allclose(depth, mirrored[:, ::-1], rtol=1e-10)


def test_resize_policies_come_back_to_the_input_size(model, photo):
    for policy in ({"size": (64, 96)}, {"max_side": 64}, {"size": (192, 320)}):
        prediction = Predictor(model, **policy)(photo)
        assert prediction.size == (96, 160)
        assert not np.array_equal(prediction.depth, Predictor(model)(photo).depth)
    same = Predictor(model, max_side=500)(photo).depth
    np.testing.assert_array_equal(same, Predictor(model)(photo).depth)


def test_bf16_is_close(model, photo):
    full = Predictor(model)(photo).depth
    half = Predictor(model, precision="bf16")(photo)
    assert half.depth.dtype == np.float32
    assert not np.array_equal(half.depth, full)
    assert np.median(np.abs(half.depth - full) / full) < 0.05


def test_confidence_is_one_minus_normalised_entropy():
    logits = torch.zeros(1, 16, 1, 3)
    logits[0, 5, 0, 1] = 100.0
    logits[0, :4, 0, 2] = 100.0  # four equal bins of sixteen: entropy log 4
    np.testing.assert_allclose(certainty(logits)[0, 0, 0].numpy(), [0.0, 1.0, 0.5], atol=1e-6)


def test_paths_name_the_prediction(model, photo, tmp_path):
    path = tmp_path / "living room.png"
    Image.fromarray(photo).save(path)
    predictor = Predictor(model)
    assert predictor(path).id == predictor(Image.open(path)).id == "living room"
    assert predictor(path, id="scene-1").id == "scene-1"
    assert predictor(photo).id == "image"
    with pytest.raises(DataError, match="there is no such photograph"):
        predictor(tmp_path / "absent.png")


def test_intrinsics_are_handed_through(model, photo):
    camera = [[500, 0, 80], [0, 500, 48], [0, 0, 1]]
    prediction = Predictor(model)(photo, intrinsics=camera)
    np.testing.assert_array_equal(prediction.intrinsics, np.array(camera, float))
    assert Predictor(model)(photo).intrinsics is None
    with pytest.raises(ShapeError, match="camera matrix"):
        Predictor(model)(photo, intrinsics=[500, 500, 80, 48])


def test_it_works_with_a_copy_in_eval_mode(photo):
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0).train()
    predictor = Predictor(model)
    before = predictor(photo).depth
    assert model.training
    with torch.no_grad():
        model.depth_head.score.weight.mul_(2)
    np.testing.assert_array_equal(predictor(photo).depth, before)


def test_broken_models_are_reported_not_repaired(photo, caplog):
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0)
    with torch.no_grad():
        model.depth_head.score.bias[0] = torch.nan
    with caplog.at_level(logging.WARNING, logger="sa2depth"):
        prediction = Predictor(model)(photo)
    assert prediction.broken_pixels == photo.shape[0] * photo.shape[1]
    assert f"{prediction.broken_pixels} of {prediction.broken_pixels}" in caplog.text


def test_options_that_cannot_mean_anything(model):
    with pytest.raises(ConfigError, match="fp32 or bf16"):
        Predictor(model, precision="int8")
    with pytest.raises(ConfigError, match="either size or max_side"):
        Predictor(model, size=(32, 32), max_side=32)
    with pytest.raises(ConfigError, match="is not a device"):
        Predictor(model, device="abacus")


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match=r"cuda:99 was requested"):
        pick_device("cuda:99")
    if not torch.backends.mps.is_available():
        with pytest.raises(
            ConfigError, match=r"mps was requested, but PyTorch cannot compute there \(.*use device=cpu"
        ):
            pick_device("mps")
    for nowhere in ("meta", "xpu:99", "nonsense"):
        with pytest.raises(ConfigError, match=nowhere):
            pick_device(nowhere)


def test_prediction_says_its_size():
    depth = np.ones((2, 3), np.float32)
    depth[0, 0] = np.inf
    prediction = Prediction(depth, np.ones_like(depth), 0.1, 8.0)
    assert (prediction.size, prediction.broken_pixels, prediction.id) == ((2, 3), 1, "image")
