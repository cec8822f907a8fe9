import time

import pytest
import torch

from sa2depth.data import nyu_labelled
from sa2depth.data.augment.augmentation import Augmentation
from sa2depth.data.loading.datamodule import DepthDataModule
from sa2depth.data.loading.dataset import DepthDataset
from sa2depth.data.loading.speed import Rate, loader_rate, recommend, stage_times


@pytest.fixture
def module(raw_sample, list_source):
    source = list_source(raw_sample(seed=n) for n in range(8))
    return DepthDataModule(source, augment=Augmentation(horizontal_flip=0.5), batch_size=4, num_workers=5)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_training_loader_is_timed(module, workers):
    rate = loader_rate(module, workers, 0.2)
    assert rate.workers == workers
    assert rate.images % 4 == 0
    assert rate.images > 8  # more than one epoch
    assert rate.seconds >= 0.2
    assert rate.per_second == rate.images / rate.seconds
    assert module.num_workers == 5


def test_a_slow_source_is_measured_as_slow(raw_sample, list_source):
    class Slow(list_source):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    module = DepthDataModule(Slow([raw_sample(seed=n) for n in range(4)]), batch_size=2)
    assert 20 < loader_rate(module, 0, 0.3).per_second < 50
    stages = stage_times(DepthDataset(module.source("train")), 2, 0.3)
    assert set(stages) == {"make sample", "tensor", "collate"}
    assert 20 <= stages["make sample"] < 40
    assert stages["collate"] < 5


def test_files_are_timed_apart(labelled_tree):
    root, ids = labelled_tree()
    source = nyu_labelled(root, ids=ids)
    before = torch.get_num_threads()
    stages = stage_times(DepthDataset(source, Augmentation(cut_flip=1.0)), 3, 0.0)
    assert list(stages) == ["decode image", "decode depth", "augment", "tensor", "collate"]
    assert all(milliseconds > 0 for milliseconds in stages.values())
    assert torch.get_num_threads() == before


def test_a_fixed_preparation_is_a_stage_of_its_own(labelled_tree):
    root, ids = labelled_tree()
    source = nyu_labelled(root, ids=ids)
    source.prepare = lambda sample: sample
    assert "prepare" in stage_times(DepthDataset(source), 2, 0.0)


def test_the_timed_stages_make_the_items_of_the_dataset(labelled_tree, monkeypatch):
    from sa2depth.data.loading import speed

    root, ids = labelled_tree()
    dataset = DepthDataset(
        nyu_labelled(root, ids=ids), Augmentation(cut_flip=0.5, photometric=1.0, color=[0.5, 1])
    )
    batches = []
    original = speed.collate
    monkeypatch.setattr(speed, "collate", lambda items: batches.append(items) or original(items))
    stage_times(dataset, 6, 0.0)
    for item in batches[0]:
        expected = dataset[item["index"]]
        assert item["id"] == expected["id"]
        for key in ("image", "depth", "intrinsics"):
            assert torch.equal(item[key], expected[key])


def test_the_fewest_workers_that_are_nearly_the_fastest():
    rates = [Rate(0, 90, 1.0, 0.1), Rate(4, 300, 1.0, 0.1), Rate(8, 390, 1.0, 0.1), Rate(16, 400, 1.0, 0.1)]
    assert recommend(rates) == 8
    assert rates[1].per_worker == 75
    assert rates[0].per_worker == 90
