import lightning.pytorch as pl
import pytest
import torch

from sa2depth.data.augment.augmentation import Augmentation
from sa2depth.data.loading.datamodule import DepthDataModule
from sa2depth.data.loading.dataset import DepthDataset, collate
from sa2depth.data.loading.samplers import Draw, EvaluationSampler, TrainingSampler
from sa2depth.errors import ConfigError, DataError


@pytest.fixture
def module(raw_sample, list_source):
    def make(**options):
        train = list_source(raw_sample(seed=n) for n in range(10))
        val = list_source(raw_sample(seed=n) for n in range(10, 15))
        settings = {
            "augment": Augmentation(
                crop=[20, 30], horizontal_flip=0.5, photometric=0.5, brightness=[0.5, 1.0]
            ),
            "batch_size": 2,
            "num_workers": 0,
        }
        return DepthDataModule(**({"train": train, "val": val, "test": lambda: val} | settings | options))

    return make


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(one, two):
    return all(
        a["id"] == b["id"] and torch.equal(a["image"], b["image"]) and torch.equal(a["depth"], b["depth"])
        for a, b in zip(one, two, strict=True)
    )


def test_item_is_what_the_design_says(raw_sample, list_source):
    sample = raw_sample()
    item = DepthDataset(list_source([sample]))[0]
    assert set(item) == {"image", "depth", "intrinsics", "id", "index"}
    assert item["image"].shape == (3, 48, 64)
    assert item["image"].dtype == item["depth"].dtype == item["intrinsics"].dtype == torch.float32
    assert torch.equal(item["depth"][0], torch.from_numpy(sample.depth))
    assert item["image"][1, 5, 7].item() == pytest.approx(sample.image[5, 7, 1] / 255)


def test_batch(module):
    batch = next(iter(module().train_dataloader()))
    assert batch["image"].shape == (2, 3, 20, 30)
    assert batch["depth"].shape == (2, 1, 20, 30)
    assert batch["intrinsics"].shape == (2, 3, 3)
    assert batch["index"].dtype == torch.int64
    assert [f"sample{n}" for n in batch["index"].tolist()] == batch["id"]


def test_items_without_depth_make_batches_without_depth(raw_sample, list_source):
    dataset = DepthDataset(list_source([raw_sample(depth=False), raw_sample(depth=True)]))
    assert "depth" not in collate([dataset[0], dataset[0]])
    with pytest.raises(DataError, match="sample0"):
        collate([dataset[0], dataset[1]])


def test_different_sizes_in_a_batch_are_named(raw_sample, list_source):
    dataset = DepthDataset(list_source([raw_sample(), raw_sample(32, 64, seed=1)]))
    with pytest.raises(DataError, match=r"sample0 is 48x64, sample1 is 32x64.*eval_batch_size=1"):
        collate([dataset[0], dataset[1]])


def test_augmentation_depends_on_seed_epoch_and_index_alone(raw_sample, list_source):
    augment = Augmentation(crop=[20, 30], photometric=1.0, color=[0.5, 1.5])
    source = list_source([raw_sample(), raw_sample()])
    dataset, other_seed = DepthDataset(source, augment, 7), DepthDataset(source, augment, 8)
    first = dataset[Draw(0, 3)]["image"]
    dataset[Draw(1, 5)]
    assert torch.equal(first, dataset[Draw(0, 3)]["image"])
    for other in (dataset[Draw(0, 4)], dataset[Draw(1, 3)], other_seed[Draw(0, 3)]):
        assert not torch.equal(first, other["image"])
    assert torch.equal(dataset[0]["image"], dataset[Draw(0, 0)]["image"])


@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_same_batches_whatever_the_workers(module, workers):
    alone, helped = module().train_dataloader(), module(num_workers=workers).train_dataloader()
    epochs = [epoch_of(helped, epoch) for epoch in range(2)]  # the same workers load both
    assert same(epoch_of(alone, 0), epochs[0])
    assert same(epoch_of(alone, 1), epochs[1])
    assert not same(epochs[0], epochs[1])
    assert not same(epochs[0], epoch_of(module(seed=1).train_dataloader(), 0))


def test_no_two_samples_are_augmented_alike(raw_sample, list_source):
    twins = list_source([raw_sample() for _ in range(8)])
    augment = Augmentation(photometric=1.0, brightness=[0.2, 1.0])
    loader = DepthDataModule(twins, augment=augment, batch_size=8, num_workers=0).train_dataloader()
    brightness = next(iter(loader))["image"].mean((1, 2, 3))
    assert len(set(brightness.tolist())) == 8


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sampler_is_an_exact_partition(size, world):
    shares = [list(EvaluationSampler(size, rank, world)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(size))
    assert [len(EvaluationSampler(size, rank, world)) for rank in range(world)] == [
        len(share) for share in shares
    ]


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_sampler_deals_out_equal_shares(size, world):
    sampler = [TrainingSampler(size, 0, rank, world) for rank in range(world)]
    drawn = [draw for one in sampler for draw in one]
    numbers = [draw.number for draw in drawn]
    assert {len(list(one)) for one in sampler} == {len(sampler[0])} == {size // world}
    assert len(set(numbers)) == len(numbers) == size // world * world
    seen = set(numbers)
    for epoch in range(1, 20):
        for one in sampler:
            one.set_epoch(epoch)
            seen |= {draw.number for draw in one}
            assert {draw.epoch for draw in one} == {epoch}
    assert seen == set(range(size))


def test_evaluation_sees_every_image_once_unaugmented(module):
    loader = module(eval_batch_size=2).val_dataloader()
    batches = list(loader)
    assert [len(batch["id"]) for batch in batches] == [2, 2, 1]
    assert [name for batch in batches for name in batch["id"]] == [f"sample{n}" for n in range(10, 15)]
    assert batches[0]["image"].shape == (2, 3, 48, 64)


def test_incomplete_training_batch_is_left_out(module):
    assert len(list(module(batch_size=3).train_dataloader())) == 3


def test_too_few_images_for_a_batch(module):
    with pytest.raises(ConfigError, match="10 training images do not fill"):
        module(batch_size=11).train_dataloader()


def test_batch_is_shared_by_the_processes(module, monkeypatch):
    monkeypatch.setattr("sa2depth.data.loading.datamodule.process_place", lambda: (1, 2))
    loader = module(batch_size=4).train_dataloader()
    assert loader.batch_size == 2
    assert len(loader) == 2
    with pytest.raises(ConfigError, match="shared evenly by 2"):
        module(batch_size=5).train_dataloader()


def test_sources_are_built_for_the_stage_that_needs_them(module):
    def broken():
        raise DataError("files are missing")

    data = module(train=broken)
    data.setup("test")
    assert data.counts() == data.counts("test") == {"test": 5}
    assert data.describe() == data.describe("test") == "test   a list of 5"
    with pytest.raises(DataError):
        data.setup("fit")


def test_a_factory_is_called_once(raw_sample, list_source):
    built = []

    def factory():
        built.append(list_source([raw_sample()]))
        return built[-1]

    data = DepthDataModule(factory)
    data.setup()
    data.setup("fit")
    data.describe()
    assert len(built) == 1


def test_a_class_is_a_factory(raw_sample, list_source):
    class One(list_source):
        def __init__(self):
            super().__init__([raw_sample()])

    assert DepthDataModule(One).counts() == {"train": 1}


def test_description_counts_and_warns_of_shared_images(module):
    text = module().describe()
    assert "train  a list of 10" in text
    assert "val    a list of 5" in text
    assert "val and test share 5 images" in text
    assert "train and" not in text
    alone = module(test=None).describe()
    assert "note" not in alone
    assert "test   none" in alone
    assert module().counts() == {"train": 10, "val": 5, "test": 5}


def test_workers_follow_the_cores(module, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6), raising=False)
    assert module(num_workers=None).val_dataloader().num_workers == 6
    assert module(num_workers=3).val_dataloader().num_workers == 3
    monkeypatch.setattr("sa2depth.data.loading.datamodule.process_place", lambda: (0, 4))
    assert module(num_workers=None).val_dataloader().num_workers == 1


@pytest.mark.parametrize("option", ["batch_size", "eval_batch_size", "num_workers", "seed"])
def test_numbers_out_of_range_are_refused(module, option):
    with pytest.raises(ConfigError, match=option):
        module(**{option: -1})


class Recorder(pl.LightningModule):
    """Records the batches that it gets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs, self.validated = {}, []

    def training_step(self, batch, _):
        self.epochs.setdefault(self.current_epoch, []).append((batch["id"], batch["image"].sum().item()))
        return self.weight * 1.0

    def validation_step(self, batch, _):
        self.validated += batch["id"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(data, epochs):
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, datamodule=data)
    return recorder


def test_training_without_validation(module):
    recorder = trained(module(val=None), 1)
    assert len(recorder.epochs[0]) == 5
    assert recorder.validated == []


def test_lightning_tells_the_sampler_its_epoch(module):
    data = module()
    recorder = trained(data, 2)
    loader = data.train_dataloader()
    for epoch in range(2):
        expected = [(batch["id"], batch["image"].sum().item()) for batch in epoch_of(loader, epoch)]
        assert recorder.epochs[epoch] == expected
    assert recorder.validated == [f"sample{n}" for n in range(10, 15)] * 2
