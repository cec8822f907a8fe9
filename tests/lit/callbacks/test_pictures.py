"""Test images for the report are kept while they are scored."""

from types import SimpleNamespace

from brightness import batch_of, module_of
from sa2depth.lit.callbacks.pictures import Pictures, kept_examples


def test_keeps_the_worst_and_the_best_test_images():
    module, pictures = module_of(), Pictures(count=1)
    pictures.on_test_epoch_start(SimpleNamespace(test_dataloaders=SimpleNamespace(dataset=())), module)
    for first in range(0, 10, 2):
        batch = batch_of(size=(32, 64), first=first)
        batch["image"][:] = 0.5
        # 1 metre is predicted; truths of 1, 2, ... make errors that grow with the index
        for place in range(2):
            batch["depth"][place] = 1.0 + (first + place) % 7
        pictures.on_test_batch_end(None, module, module.test_step(batch, 0), batch, 0)
    worst, best = pictures.examples.get(6), pictures.examples.get(0)
    assert len(pictures.examples) == 2
    assert (worst.id, best.id) == ("6", "0")
    assert worst.image.shape == (32, 64, 3)
    assert worst.image.dtype == "uint8"
    assert worst.prediction.shape == worst.truth.shape == (32, 64)
    assert (worst.truth == 7.0).all()


def test_some_come_from_all_over_the_data_set():
    pictures = Pictures(count=2)
    loader = SimpleNamespace(dataset=range(9))
    trainer = SimpleNamespace(test_dataloaders=loader, callbacks=[None, pictures])
    pictures.on_test_epoch_start(trainer, module_of())
    assert (kept_examples(trainer).count, kept_examples(trainer).total) == (2, 9)
