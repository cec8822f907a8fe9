import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from sa2depth.data.augment.augmentation import Augmentation
from sa2depth.data.augment.cut_flip import cut_flip
from sa2depth.data.augment.photometric import PhotometricJitter, to_float
from sa2depth.data.loading.samplers import stream
from sa2depth.errors import ConfigError, DataError

GEOMETRY = [{"rotation": 10.0}, {"crop": [20, 30]}, {"horizontal_flip": 1.0}, {"cut_flip": 1.0}]
LIGHT = [{"gamma": [0.5, 0.6]}, {"brightness": [1.2, 1.3]}, {"color": [0.5, 0.9]}]


def apply(options, sample, *place):
    return Augmentation(**options)(sample, stream(0, *place))


def full(sample, *place, **more):
    options = {k: v for part in GEOMETRY + LIGHT for k, v in part.items()} | {"photometric": 0.5} | more
    return apply(options, sample, *place)


def test_albumentations_does_not_look_for_updates():
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_nothing_is_on_by_default(raw_sample):
    sample = raw_sample()
    result = apply({}, sample)
    np.testing.assert_allclose(result.image, sample.image / 255.0, atol=1e-6)
    assert result.image.dtype == np.float32
    assert np.array_equal(result.depth, sample.depth)
    assert np.array_equal(result.intrinsics, sample.intrinsics)


@pytest.mark.parametrize("options", GEOMETRY)
def test_geometry_moves_image_and_depth(raw_sample, options):
    sample = raw_sample()
    result = apply(options, sample)
    assert result.depth.shape == result.image.shape[:2]
    assert result.image.shape != sample.image.shape or not np.allclose(result.image, sample.image / 255)
    assert not np.array_equal(result.depth, sample.depth)


@pytest.mark.parametrize("options", LIGHT)
def test_light_changes_the_image_alone(raw_sample, options):
    sample = raw_sample()
    result = apply({"photometric": 1.0, **options}, sample)
    assert np.array_equal(result.depth, sample.depth)
    assert np.abs(result.image - sample.image / 255).max() > 0.05
    assert result.image.min() >= 0
    assert result.image.max() <= 1
    off = apply({"photometric": 0.0, **options}, sample)
    np.testing.assert_allclose(off.image, sample.image / 255, atol=1e-6)


def test_no_depth_is_invented(raw_sample):
    sample = raw_sample()
    allowed = {0.0, *sample.depth.ravel().tolist()}
    for place in range(30):
        result = full(sample, place)
        assert result.depth.dtype == np.float32
        assert set(result.depth.ravel().tolist()) <= allowed


def test_image_and_depth_stay_aligned(raw_sample):
    # The red channel carries the depth: image and depth must agree wherever an area is flat.
    sample = raw_sample()
    blocks = np.repeat(np.repeat(np.arange(1, 13, dtype=np.uint8).reshape(3, 4), 16, 0), 16, 1)
    sample.image[:] = blocks[..., None] * 20
    sample.depth[:] = blocks
    for place in range(20):
        result = full(sample, place, photometric=0.0)
        red = np.rint(result.image[..., 0] * 255 / 20)
        agree = red == result.depth
        assert agree.mean() > 0.85


def test_corners_after_rotation_are_black_and_invalid(raw_sample):
    sample = raw_sample()
    for place in range(5):
        result = apply({"rotation": 30.0}, sample, place)
        outside = result.depth == 0
        assert 0 < outside.mean() < 0.5
        assert outside[0, 0] or outside[0, -1]
        dark = result.image.mean(-1)
        assert (dark[outside] == 0).mean() > 0.4  # the rest is the seam, where bilinear blends with black
        assert (dark[~outside] > 0).mean() > 0.99


def test_rotation_draws_both_directions_within_its_limit(raw_sample):
    sample = raw_sample(101, 101)
    marked = sample.depth * 0
    marked[50, 98:101] = 1.0
    sample.depth[:] = marked
    rows = [np.nonzero(apply({"rotation": 20.0}, sample, n).depth)[0].mean() - 50 for n in range(60)]
    limit = 49 * np.sin(np.radians(20.0)) + 1.5
    assert min(rows) < -8
    assert max(rows) > 8
    assert max(np.abs(rows)) <= limit


@pytest.mark.parametrize("options", [{"crop": [20, 30]}, {"horizontal_flip": 1.0}, {"rotation": 15.0}])
def test_principal_point_follows_the_picture(raw_sample, options):
    sample = raw_sample()
    x, y = 30, 25
    sample.intrinsics[:2, 2] = x, y
    sample.depth[:] = 1.0
    sample.depth[y - 1 : y + 2, x - 1 : x + 2] = 2.0
    seen = 0
    for place in range(20):
        result = apply(options, sample, place)
        rows, columns = np.nonzero(result.depth == 2.0)
        if len(rows) < 7:  # cropped away
            continue
        seen += 1
        np.testing.assert_allclose(result.intrinsics[:2, 2], [columns.mean(), rows.mean()], atol=0.6)
        assert result.intrinsics[0, 0] == 50.0
        assert result.intrinsics[1, 1] == 51.0
    assert seen >= 5


def test_flip_is_a_mirror_with_exact_intrinsics(raw_sample):
    sample = raw_sample()
    result = apply({"horizontal_flip": 1.0}, sample)
    assert np.array_equal(result.depth, sample.depth[:, ::-1])
    assert result.intrinsics[0, 2] == pytest.approx(63 - sample.intrinsics[0, 2], abs=1e-5)


def test_crop_is_a_window_with_exact_intrinsics(raw_sample):
    sample = raw_sample()
    places = set()
    for place in range(60):
        result = apply({"crop": [20, 30]}, sample, place)
        top, left = np.argwhere(sample.depth == result.depth[0, 0])[0]
        assert np.array_equal(result.depth, sample.depth[top : top + 20, left : left + 30])
        np.testing.assert_allclose(
            result.intrinsics[:2, 2], sample.intrinsics[:2, 2] - [left, top], atol=1e-4
        )
        places.add((int(top), int(left)))
    tops, lefts = zip(*places, strict=True)
    assert len(places) > 40
    assert min(tops) <= 3
    assert max(tops) >= 25
    assert min(lefts) <= 4
    assert max(lefts) >= 30


def test_cut_flip_swaps_two_bands(raw_sample):
    sample = raw_sample(100, 8)
    heights = set()
    for place in range(400):
        result = cut_flip(sample, stream(0, place))
        height = int(np.argwhere(result.depth == sample.depth[0, 0])[0, 0])
        heights.add(height)
        assert np.array_equal(result.depth, np.concatenate([sample.depth[-height:], sample.depth[:-height]]))
        assert np.array_equal(result.image, np.concatenate([sample.image[-height:], sample.image[:-height]]))
    assert min(heights) == 20
    assert max(heights) == 80


def test_decisions_are_independent(raw_sample):
    # With one seed for each step, as albumentations does it, flip and cut-flip would always come together.
    sample = raw_sample(40, 40, depth=False)
    options = {"horizontal_flip": 0.5, "photometric": 0.5, "brightness": [0.5, 0.5], "cut_flip": 0.5}
    seen = []
    for place in range(300):
        result = apply(options, sample, place)
        sums = result.image.sum((0, 2))
        plain = sample.image.sum((0, 2), dtype=np.int64) / 255
        light = sums.sum() / plain.sum()
        flipped = np.abs(sums / light - plain[::-1]).max() < np.abs(sums / light - plain).max()
        first = sample.image[0, ::-1] if flipped else sample.image[0]
        cut = np.abs(result.image[0] / light - first / 255).max() > 0.05
        seen.append((bool(flipped), bool(light < 0.75), bool(cut)))
    counts = {which: seen.count(which) for which in set(seen)}
    assert len(counts) == 8
    assert min(counts.values()) > 300 / 8 / 2


def test_photometric_is_the_released_formula():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    jitter = PhotometricJitter(1.0, [0.9, 0.9], [1.25, 1.25], [0.9, 1.1])
    result = jitter(image, np.random.default_rng(0))
    again = np.random.default_rng(0)
    again.random()
    again.uniform(0.9, 0.9)
    again.uniform(1.25, 1.25)
    color = again.uniform(0.9, 1.1, size=3)
    np.testing.assert_allclose(result, np.clip((image / 255) ** 0.9 * 1.25 * color, 0, 1), atol=1e-6)


def test_photometric_happens_as_often_as_asked(raw_sample):
    image = raw_sample().image
    jitter = PhotometricJitter(0.25, brightness=[0.5, 0.6])
    changed = [not np.allclose(jitter(image, stream(0, n)), image / 255) for n in range(400)]
    assert 0.18 < np.mean(changed) < 0.32


def test_to_float():
    assert to_float(np.array([[[255]]], np.uint8)) == 1.0
    assert to_float(np.array([[[0.5]]], np.float64)).dtype == np.float32


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 9, 3), (6, 1, 3), (4, 4, 1)])
def test_to_float_is_a_division_and_lies_channel_by_channel(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    result = to_float(image[:, ::-1])
    assert np.array_equal(result, image[:, ::-1].astype(np.float32) / np.float32(255))
    assert result.transpose(2, 0, 1).flags.c_contiguous


def test_a_sample_without_depth_is_augmented_too(raw_sample):
    result = full(raw_sample(depth=False))
    assert result.depth is None
    assert result.image.shape == (20, 30, 3)


def test_an_unknown_camera_stays_unknown(raw_sample):
    known = raw_sample()
    unknown = replace(known, intrinsics=np.array([[np.nan] * 3, [np.nan] * 3, [0.0, 0.0, 1.0]]))
    for place in range(5):
        options = {"rotation": 5, "crop": [20, 30], "horizontal_flip": 0.5, "cut_flip": 0.5}
        one, two = apply(options, known, place), apply(options, unknown, place)
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.depth, two.depth)
        assert np.isnan(two.intrinsics[:2]).all()
        assert np.isfinite(one.intrinsics).all()


def test_same_stream_same_result_and_survives_pickling(raw_sample):
    augment = Augmentation(
        rotation=5, crop=[20, 30], horizontal_flip=0.5, photometric=0.5, color=[0.5, 1.5], cut_flip=0.5
    )
    copied = pickle.loads(pickle.dumps(augment))
    sample = raw_sample()
    for place in range(10):
        one = augment(sample, stream(3, place))
        augment(sample, stream(4, place))
        two = copied(sample, stream(3, place))
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.depth, two.depth)
        assert np.array_equal(one.intrinsics, two.intrinsics)


def test_too_small_for_the_crop_names_the_sample(raw_sample):
    with pytest.raises(DataError, match=r"sample0: 48x64"):
        apply({"crop": [64, 64]}, raw_sample())


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": -1},
        {"rotation": 90},
        {"rotation": float("nan")},
        {"crop": [3]},
        {"crop": [0, 5]},
        {"horizontal_flip": 1.1},
        {"cut_flip": -0.1},
        {"photometric": 2},
        {"photometric": 1, "gamma": [0, 1]},
        {"photometric": 1, "color": [1.1, 0.9]},
        {"photometric": 1, "brightness": [1.0]},
    ],
)
def test_values_outside_their_range_are_refused(options):
    with pytest.raises(ConfigError):
        Augmentation(**options)
