"""A training whose batches hold nothing to learn from ends with the reason."""

from types import SimpleNamespace

import pytest

from brightness import batch_of, module_of
from sa2depth.errors import DataError
from sa2depth.lit import TruthSought


def look(batches, in_epoch=float("inf")):
    callback, module = TruthSought(), module_of()
    for step, batch in enumerate(batches):
        callback.on_train_batch_start(SimpleNamespace(num_training_batches=in_epoch), module, batch, step)


def test_training_without_any_truth_ends_with_the_reason():
    batch = batch_of(depth=0.002)  # millimetres read as metres, twice
    look([batch] * 19)
    with pytest.raises(
        DataError, match=r"none of the first 20 training batches .* between 0\.002 and 0\.002 m"
    ):
        look([batch] * 20)


def test_a_short_epoch_without_truth_ends_too():
    batch = batch_of(depth=0.0)
    look([batch], in_epoch=2)
    with pytest.raises(
        DataError, match=r"none of the first 2 training batches .* Those of 0, 1 are all 0: check"
    ):
        look([batch] * 2, in_epoch=2)


def test_truth_that_is_sparse_is_enough():
    empty, first = batch_of(depth=0.0), batch_of(depth=0.0)
    first["depth"][1, 0, 3, 3] = 2.0
    look([empty, first, *[empty] * 40])
