"""Made-up data: small files in the layouts of the real data sets."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from PIL import Image

from sa2depth.data.sample import RawSample, camera_matrix
from sa2depth.data.sets.nyu import LABELLED_TABLES
from sa2depth.data.splits.tables import read_table
from sa2depth.resources import conf_dir


@pytest.fixture
def raw_sample():
    """A sample whose depths all differ and whose image encodes the position of each pixel."""

    def make(height=48, width=64, seed=0, depth=True) -> RawSample:
        rng = np.random.default_rng(seed)
        image = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
        values = rng.permutation(height * width).reshape(height, width).astype(np.float32) + 1
        matrix = camera_matrix(50.0, 51.0, width * 0.4, height * 0.7)
        return RawSample(image, values / 1000 if depth else None, matrix, f"sample{seed}")

    return make


class ListSource:
    """A source of samples in memory."""

    def __init__(self, samples):
        self.samples = list(samples)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    @property
    def ids(self):
        return [sample.id for sample in self.samples]

    def describe(self):
        return f"a list of {len(self)}"


@pytest.fixture
def list_source():
    return ListSource


@pytest.fixture
def labelled_tree(tmp_path):
    """Write ``count`` frames of an official split, 24x32 pixels each; returns ``(root, ids)``."""

    def make(split="train", count=6) -> tuple[Path, list[str]]:
        frames = read_table(LABELLED_TABLES[split])[:count]
        for scene, number in frames:
            folder = tmp_path / "nyu" / "official_splits" / split / scene
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(number)
            Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(
                folder / f"rgb_{number:05d}.jpg"
            )
            depth = rng.integers(1, 10000, (24, 32), dtype=np.uint16)
            cv2.imwrite(str(folder / f"sync_depth_{number:05d}.png"), depth)
        return tmp_path / "nyu", [f"{split}/{scene}/{number:05d}" for scene, number in frames]

    return make


@pytest.fixture
def compose(tmp_path):
    """The node ``data`` of a training configuration composed with overrides; data sets are below ``tmp_path``."""

    def make(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose("train", overrides=[f"paths.data_dir={tmp_path}", *overrides]).data

    return make
