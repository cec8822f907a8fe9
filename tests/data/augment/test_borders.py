"""The border of NYU v2 images and the bottom-centre window of KITTI."""

import numpy as np
import pytest

from sa2depth.data.augment.augmentation import Augmentation
from sa2depth.data.augment.borders import BottomCentre, NyuBorder
from sa2depth.data.loading.samplers import stream
from sa2depth.errors import ConfigError, DataError


def test_nyu_border_masks_depth_alone(raw_sample):
    sample = raw_sample(480, 640)
    result = NyuBorder("mask")(sample)
    assert np.array_equal(result.image, sample.image)
    assert (result.depth > 0).sum() == 427 * 565
    assert np.array_equal(result.depth[45:472, 43:608], sample.depth[45:472, 43:608])
    assert (sample.depth > 0).all()


def test_nyu_border_crops_both(raw_sample):
    sample = raw_sample(480, 640)
    result = NyuBorder("crop")(sample)
    assert result.image.shape == (427, 565, 3)
    assert np.array_equal(result.depth, sample.depth[45:472, 43:608])
    assert (result.intrinsics[:2, 2] == sample.intrinsics[:2, 2] - [43, 45]).all()
    assert Augmentation(border=NyuBorder("crop"), crop=[416, 544])(sample, stream(0)).depth.shape == (
        416,
        544,
    )


def test_nyu_border_is_for_nyu_images(raw_sample):
    with pytest.raises(DataError, match="48x64"):
        NyuBorder()(raw_sample())
    with pytest.raises(ConfigError):
        NyuBorder("blur")


def test_window_of_a_kitti_frame(raw_sample):
    sample = raw_sample(375, 1242)
    cut = BottomCentre()(sample)
    assert cut.image.shape == (352, 1216, 3)
    # the benchmark's own offsets: everything off the top, half the rest off the left, rounded down
    assert np.array_equal(cut.image, sample.image[23:375, 13:1229])
    assert np.array_equal(cut.depth, sample.depth[23:375, 13:1229])
    assert np.array_equal(sample.intrinsics[:2, 2] - cut.intrinsics[:2, 2], (13, 23))
    assert np.array_equal(cut.intrinsics[:, :2], sample.intrinsics[:, :2])


@pytest.mark.parametrize("size", [(370, 1226), (376, 1241), (352, 1216)])
def test_odd_remainders_round_down(raw_sample, size):
    sample = raw_sample(*size)
    cut = BottomCentre()(sample)
    left = int((size[1] - 1216) / 2)
    assert np.array_equal(cut.image, sample.image[size[0] - 352 :, left : left + 1216])


def test_other_windows_and_images_without_depth(raw_sample):
    cut = BottomCentre(10, 20)(raw_sample(48, 64, depth=False))
    assert cut.image.shape == (10, 20, 3)
    assert cut.depth is None


@pytest.mark.parametrize("size", [(351, 1242), (375, 1215)])
def test_small_images_are_refused_by_name(raw_sample, size):
    with pytest.raises(DataError, match=f"sample3: {size[0]}x{size[1]} pixels are too few"):
        BottomCentre()(raw_sample(*size, seed=3))


def test_nonsense_is_refused():
    with pytest.raises(ConfigError):
        BottomCentre(0, 10)


def test_a_pixel_keeps_its_ray_through_window_crop_and_mirror(raw_sample):
    """A pixel keeps its content and its viewing direction through the geometry of augment=kitti."""
    sample = raw_sample(375, 1242)
    rows, columns = np.mgrid[:375, :1242]
    where = (rows * 1242 + columns + 1).astype(np.float32)  # the depth map encodes where a pixel came from
    sample = type(sample)(sample.image, where, sample.intrinsics, sample.id)
    augment = Augmentation(border=BottomCentre(), crop=[352, 1120], horizontal_flip=0.5)
    mirrored = 0
    for seed in range(8):
        moved = augment(sample, np.random.default_rng(seed))
        assert moved.image.shape == (352, 1120, 3)
        row, column = 100, 77
        source = int(moved.depth[row, column]) - 1
        old_row, old_column = divmod(source, 1242)
        direction = 1 if moved.depth[row, column + 1] > moved.depth[row, column] else -1
        mirrored += direction < 0
        assert row - moved.intrinsics[1, 2] == pytest.approx(old_row - sample.intrinsics[1, 2], abs=1e-3)
        assert column - moved.intrinsics[0, 2] == pytest.approx(
            direction * (old_column - sample.intrinsics[0, 2]), abs=1e-3
        )
    assert 0 < mirrored < 8
