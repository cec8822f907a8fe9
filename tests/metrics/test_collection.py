import logging
import math
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics import METRICS, DepthMetrics, Protocol, Sizes, aggregate, collection, evaluate_image
from sa2depth.metrics.image import score_pixels
from views import uncut

OPEN = Protocol(name="open", version=1, min_depth=1e-3, max_depth=10.0)


def maps(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    depth = torch.rand(count, 1, 6, 7, generator=rng) * 11  # some beyond the limit
    return depth * torch.exp(0.3 * torch.randn(depth.shape, generator=rng)), depth


def scored_maps(count):
    pred, depth = maps(count)
    return pred, uncut(depth)


def test_mean_of_per_image_scores_whatever_the_batches():
    pred, depth = maps(5)
    rows = [evaluate_image(p, d, OPEN) for p, d in zip(pred, depth, strict=True)]
    for sizes in ([5], [1] * 5, [2, 3]):
        metric = DepthMetrics(OPEN)
        for p, d, i in zip(pred.split(sizes), depth.split(sizes), torch.arange(5).split(sizes), strict=True):
            metric.update(p, uncut(d, i))
        result = metric.compute()
        for key in METRICS:
            assert result[key] == math.fsum(row[key] for row in rows) / 5
        assert (result["images"], result["empty_images"], result["nonfinite_pixels"]) == (5, 0, 0)
        assert all(isinstance(value, (int, float)) for value in result.values())


def test_table_is_sorted_and_named():
    pred, depth = maps(3)
    metric = DepthMetrics(OPEN)
    metric.update(pred, uncut(depth, torch.tensor([7, 2, 5]), ["küche/0007", "", "c d"]))
    table = metric.table()
    assert [(row["index"], row["id"]) for row in table] == [(2, ""), (5, "c d"), (7, "küche/0007")]
    expected = evaluate_image(pred[0], depth[0], OPEN)
    assert table[2] == {"id": "küche/0007", "index": 7, **expected}
    assert isinstance(table[0]["pixels"], int)


def test_an_evaluation_counts_sizes_and_keeps_what_it_is_told():
    pred, depth = maps(3)
    metric = DepthMetrics(OPEN)
    sizes = Sizes((8, 9), (6, 7), (32, 64)), Sizes((6, 7), (6, 7), None)
    metric.update(pred[:2], replace(uncut(depth[:2]), sizes=sizes[0]))
    metric.update(pred[2:], replace(uncut(depth[2:], torch.tensor([2])), sizes=sizes[1]))
    evaluation = metric.evaluation(split_images=5, network=False)
    assert evaluation.sizes == {sizes[0]: 2, sizes[1]: 1}
    assert evaluation.inputs == {(32, 64): 2}
    assert (evaluation.frames, evaluation.split_images, evaluation.network) == ({(6, 7): 3}, 5, False)
    assert evaluation.table == metric.table()


def test_empty_images_are_left_out_counted_and_named(caplog):
    pred, depth = maps(3)
    depth[1] = 0
    metric = DepthMetrics(OPEN)
    metric.update(pred, uncut(depth, ids=["a", "hollow", "c"]))
    with caplog.at_level(logging.WARNING):
        result = metric.compute()
    rows = [evaluate_image(pred[i], depth[i], OPEN) for i in (0, 2)]
    assert result["rmse"] == math.fsum(row["rmse"] for row in rows) / 2
    assert (result["images"], result["empty_images"]) == (2, 1)
    assert "hollow" in caplog.text
    assert math.isnan(metric.table()[1]["rmse"])


def test_nonfinite_predictions_are_counted_and_named(caplog):
    pred, depth = maps(2)
    pred[1, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    metric = DepthMetrics(OPEN)
    metric.update(pred, uncut(depth, ids=["fine", "broken"]))
    with caplog.at_level(logging.WARNING):
        result = metric.compute()
    assert (result["nonfinite_pixels"], result["nonfinite_images"], result["images"]) == (3, 1, 2)
    assert "broken" in caplog.text
    assert "fine" not in caplog.text


def test_nothing_to_average_is_an_error():
    with pytest.raises(DataError, match="no image"):
        aggregate([], OPEN)
    pred, depth = maps(2)
    metric = DepthMetrics(OPEN)
    metric.update(pred, uncut(depth * 0, ids=["a", "b"]))
    with pytest.raises(DataError, match=r"none of the 2 images .* a, b"):
        metric.compute()


def test_an_image_scored_twice_is_an_error():
    pred, depth = maps(2)
    metric = DepthMetrics(OPEN)
    metric.update(pred, uncut(depth, torch.tensor([3, 4])))
    metric.update(pred[:1], uncut(depth[:1], torch.tensor([4])))
    with pytest.raises(DataError, match="indices 4"):
        metric.compute()
    with pytest.raises(DataError, match="indices 4"):
        metric.table()
    metric.reset()
    metric.update(pred, uncut(depth, torch.tensor([3, 4])))
    assert metric.compute()["images"] == 2


def test_wrong_shapes():
    pred, depth = maps(2)
    metric = DepthMetrics(OPEN)
    with pytest.raises(ShapeError):
        metric.update(pred[:, 0], uncut(depth[:, 0]))
    with pytest.raises(ShapeError):
        metric.update(pred, uncut(depth[..., 1:]))
    with pytest.raises(ShapeError, match=r"2 images, .* 1 ids"):
        metric.update(pred, uncut(depth, ids=["a"]))


@pytest.fixture
def six_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("fails", [False, True])
def test_few_threads_score_on_the_cpu(fails, six_threads, monkeypatch):
    seen = []

    def scored(*args):
        seen.append(torch.get_num_threads())
        if fails:
            raise ShapeError("broken")
        return score_pixels(*args)

    monkeypatch.setattr(collection, "score_pixels", scored)
    with pytest.raises(ShapeError, match="broken") if fails else nullcontext():
        DepthMetrics(OPEN).update(*scored_maps(2))
    assert seen == [4] * (1 if fails else 2)
    assert torch.get_num_threads() == 6


def test_another_thread_leaves_the_number_alone(six_threads, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    metric = DepthMetrics(OPEN)
    thread = threading.Thread(target=metric.update, args=scored_maps(2))
    thread.start()
    thread.join()
    assert len(metric.rows) == 1
    assert seen == []
    metric.update(*scored_maps(2))
    assert seen == [4, 6]
