from types import SimpleNamespace

import numpy as np
import pytest

from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics import MedianDepthMap, baselines


def holey(count, height=6, width=9, seed=0):
    rng = np.random.RandomState(seed)
    maps = rng.uniform(0.5, 9.0, (count, height, width)).astype(np.float32)
    maps[rng.uniform(size=maps.shape) < 0.4] = 0
    maps[:, 2, 3] = 0  # never measured
    return maps


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_exact(count, block, monkeypatch):
    monkeypatch.setattr(baselines, "_BLOCK_VALUES", block)
    maps = holey(count)
    expected = np.empty(maps.shape[1:], np.float32)
    for place in np.ndindex(*expected.shape):
        known = maps[(slice(None), *place)][maps[(slice(None), *place)] > 0]
        expected[place] = np.median(known) if len(known) else np.nan
    result = MedianDepthMap().fit(maps).predict()
    assert result.dtype == np.float32
    assert np.isnan(expected[2, 3])
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(result[known], expected[known])
    # a pixel that is never measured copies a neighbour that is
    assert np.isin(result[~known], expected[known]).all()
    if known[1:4, 2:5].sum() == 8:
        assert result[2, 3] in expected[[1, 2, 2, 3], [3, 2, 4, 3]]


def test_generators_sources_and_limits():
    maps = holey(4)
    expected = MedianDepthMap().fit(maps).predict()
    np.testing.assert_array_equal(MedianDepthMap().fit(depth[None] for depth in maps).predict(), expected)

    class Source:
        def __len__(self):
            return len(maps)

        def __getitem__(self, i):  # it never raises IndexError, like some data sources
            return SimpleNamespace(depth=maps[i % 4], id=str(i))

    np.testing.assert_array_equal(MedianDepthMap().fit(Source()).predict(), expected)
    maps[0, 0, :] = [80, np.nan, np.inf, -1, 0.05, 80, 80, 80, 80]
    limited = MedianDepthMap(min_depth=0.1, max_depth=10.0).fit(maps).predict()
    assert limited.min() > 0.1
    assert limited.max() < 10


def test_best_constant_of_each_pixel():
    maps = np.random.RandomState(1).uniform(1, 9, (31, 3, 4)).astype(np.float32)
    best = np.abs(maps - MedianDepthMap().fit(maps).predict()).mean(0)
    for shift in (-0.3, 0.2):
        assert (np.abs(maps - MedianDepthMap().fit(maps).predict() - shift).mean(0) > best).all()


def test_resizes():
    median = MedianDepthMap().fit(np.full((2, 4, 6), 3.0, np.float32))
    assert median.predict((8, 5)).shape == (8, 5)
    np.testing.assert_allclose(median.predict((8, 5)), 3.0, rtol=1e-6)
    median.predict()[:] = 0
    assert median.predict().min() == 3


def test_errors():
    with pytest.raises(DataError, match="no depth map"):
        MedianDepthMap().fit([])
    with pytest.raises(DataError, match="no valid depth"):
        MedianDepthMap().fit([np.zeros((2, 2))])
    with pytest.raises(DataError, match="sample x has no depth"):
        MedianDepthMap().fit([SimpleNamespace(depth=None, id="x")])
    with pytest.raises(ShapeError, match=r"map 1 is \(2, 3\)"):
        MedianDepthMap().fit([np.ones((2, 2)), np.ones((2, 3))])
    with pytest.raises(DataError, match="fit first"):
        MedianDepthMap().predict()
