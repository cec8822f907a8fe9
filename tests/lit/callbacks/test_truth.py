"""A training without valid depth in its batches ends with the reason."""

from types import SimpleNamespace

import pytest

from brightness import batch_of, module_of
from sa2depth.errors import DataError
from sa2depth.lit.callbacks.truth import TruthSought


def look(batches, in_epoch=float("inf")):
    callback, module = TruthSought(), module_of()
    for step, batch in enumerate(batches):
        callback.on_train_batch_start(SimpleNamespace(num_training_batches=in_epoch), module, batch, step)


@pytest.mark.parametrize(
    ("depth", "in_epoch", "batches", "words"),
    [
        (0.002, float("inf"), 20, r".* between 0\.002 and 0\.002 m"),  # millimetres read as metres, twice
        (0.0, 2, 2, ".* Those of 0, 1 are all 0: check"),
    ],
    ids=["training", "short epoch"],
)
def test_what_has_no_truth_ends_with_the_reason(depth, in_epoch, batches, words):
    batch = batch_of(depth=depth)
    look([batch] * (batches - 1), in_epoch)
    with pytest.raises(DataError, match=f"none of the first {batches} training batches {words}"):
        look([batch] * batches, in_epoch)


def test_truth_that_is_sparse_is_enough():
    empty, first = batch_of(depth=0.0), batch_of(depth=0.0)
    first["depth"][1, 0, 3, 3] = 2.0
    look([empty, first, *[empty] * 40])
