"""The shown images are the worst and best of all, however the images are distributed over processes."""

import math

import numpy as np
import pytest
import torch

from sa2depth.metrics.examples import Example, Examples, choose, spread


def rows(errors):
    return [
        {"index": i, "id": str(i), "abs_rel": e, "pixels": 0 if math.isnan(e) else 9}
        for i, e in enumerate(errors)
    ]


def example(index):
    return Example(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2)), np.ones((2, 2)), str(index))


def indices(chosen):
    return {kind: [row["index"] for row in found] for kind, found in chosen.items()}


def test_chooses_worst_best_and_spread():
    chosen = choose(rows([0.5, 0.1, 0.9, 0.3, math.nan, 0.2, 0.4]), 2, 7)
    assert indices(chosen) == {"worst": [2, 0], "best": [1, 5], "spread": [0, 6]}


def test_equal_errors_have_one_order_for_all():
    assert indices(choose(rows([0.5] * 5), 2, 5)) == {"worst": [4, 3], "best": [0, 1], "spread": [0, 4]}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_chosen_image_is_held_by_the_process_that_saw_it(world, seed):
    rng = np.random.default_rng(seed)
    errors = rng.integers(0, 12, 40) / 10.0  # many ties
    errors[rng.integers(0, 40, 3)] = math.nan
    processes = [Examples(3, 40) for _ in range(world)]
    for index, error in enumerate(errors):
        processes[index % world].offer(index, float(error), lambda index=index: example(index))
    assert all(len(process) <= 9 for process in processes)
    for found in choose(rows(errors), 3, 40).values():
        assert len(found) == 3
        for row in found:
            kept = processes[row["index"] % world].get(row["index"])
            assert kept is not None
            assert kept.id == row["id"]


def test_makes_only_what_it_keeps():
    made = []

    def make(index):
        made.append(index)
        return example(index)

    kept = Examples(1, 0)
    for index, error in enumerate([0.5, 0.9, 0.1, 0.6, 0.7]):
        kept.offer(index, error, lambda index=index: make(index))
    assert made == [0, 1, 2]
    assert (kept.get(0), len(kept)) == (None, 2)


def test_an_image_without_a_scored_pixel_is_neither_best_nor_worst_but_may_be_spread():
    kept = Examples(2, 3)
    for index in range(3):
        kept.offer(index, math.nan, lambda index=index: example(index))
    assert len(kept) == 2
    assert indices(choose(rows([math.nan] * 3), 2, 3)) == {"worst": [], "best": [], "spread": [0, 2]}


def test_spread_reaches_both_ends():
    assert spread(654, 6) == [0, 130, 261, 391, 522, 653]
    assert spread(3, 6) == [0, 1, 2]
    assert spread(1, 6) == [0]
    assert spread(0, 6) == []
    assert spread(5, 1) == [0]


def test_an_example_is_what_was_read():
    image = torch.arange(12).reshape(3, 2, 2) / 255
    kept = Example.of(image, torch.ones(1, 2, 2), torch.full((1, 2, 2), 2.0), "a")
    assert kept.image.tolist() == torch.arange(12).reshape(3, 2, 2).permute(1, 2, 0).tolist()
    assert (kept.truth == 1).all()
    assert (kept.prediction == 2).all()
