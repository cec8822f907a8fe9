import numpy as np

from sa2depth.metrics.holes import fill_from_nearest


def test_nearest_known_pixel_within_reach():
    values = np.array([[1.0, 0, 0, 0, 0, 7]])
    known = values > 0
    assert fill_from_nearest(values, known).tolist() == [[1, 1, 1, 7, 7, 7]]
    assert fill_from_nearest(values, known, 1.5).tolist() == [[1, 1, 0, 0, 7, 7]]
    assert values.tolist() == [[1, 0, 0, 0, 0, 7]]


def test_every_second_pixel_becomes_dense_and_known_ones_stay():
    truth = np.random.RandomState(0).uniform(1, 9, (12, 16)).astype(np.float32)
    known = np.zeros(truth.shape, bool)
    known[::2, ::2] = True
    filled = fill_from_nearest(np.where(known, truth, 0), known, 1.5)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[known], truth[known])
    assert (filled > 0).all()
    assert np.isin(filled, truth[known]).all()


def test_nothing_known():
    values = np.full((2, 3), 5.0)
    np.testing.assert_array_equal(fill_from_nearest(values, np.zeros((2, 3), bool)), values)
