import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sa2depth.cli import app
from sa2depth.data.loading.dataset import DepthDataset
from sa2depth.data.sets.nyu import LABELLED_TABLES
from sa2depth.data.splits.tables import read_table

SMALL = ["data.train.count=9", "data.train.height=24", "data.train.width=32"]


def run(*arguments):
    return CliRunner().invoke(app, ["data", "show", *map(str, arguments)])


@pytest.fixture
def rows(monkeypatch):
    """The rows from which the sheet was drawn."""
    from sa2depth.report import contact_sheet as module

    drawn = []
    original = module.contact_sheet

    def keep(rows, *arguments):
        drawn.append(rows)
        return original(rows, *arguments)

    monkeypatch.setattr(module, "contact_sheet", keep)
    return drawn


def test_a_sheet_is_written(tmp_path, rows):
    result = run("synthetic", *SMALL, "--count", 3, "-o", tmp_path / "a" / "sheet.png")
    assert result.exit_code == 0, result.output
    assert "3 of 9 images of train" in result.output
    sheet = Image.open(tmp_path / "a" / "sheet.png")
    assert sheet.format == "PNG"
    assert len(rows[0]) == 3
    assert all(row.after_image is None and row.depth.shape == (24, 32) for row in rows[0])


def test_the_augmentation_shown_is_that_of_training(tmp_path, rows):
    from sa2depth.cli.data.choose import build_module, compose_data

    options = ["--count", 9, "--augment", "synthetic", "--seed", 3, "-o", tmp_path / "s.png"]
    assert run("synthetic", *SMALL, *options).exit_code == 0
    data = build_module(compose_data("synthetic", None, [*SMALL, "seed=3"], "synthetic"))
    data.batch_size, data.num_workers = 3, 0
    items = {
        name: (image, depth)
        for batch in data.train_dataloader()
        for name, image, depth in zip(batch["id"], batch["image"], batch["depth"], strict=True)
    }
    assert len(items) == len(rows[0]) == 9
    for row in rows[0]:
        image, depth = items[row.title]
        assert np.array_equal(row.after_image, image.permute(1, 2, 0))
        assert np.array_equal(row.after_depth, depth[0])
    as_read = DepthDataset(data.source("train"))
    first = next(n for n in range(9) if as_read[n]["id"] == rows[0][0].title)
    assert torch.equal(as_read[first]["depth"][0], torch.from_numpy(rows[0][0].depth))


def test_the_seed_chooses_the_images(tmp_path, rows):
    for seed in (0, 0, 1):
        run("synthetic", *SMALL, "--count", 4, "--seed", seed, "-o", tmp_path / "s.png")
    first, again, other = ([row.title for row in sheet] for sheet in rows)
    assert first == again
    assert first != other


def test_a_tree_that_lacks_files_shows_the_rest(tmp_path, rows):
    frames = read_table(LABELLED_TABLES["test"])
    for scene, number in frames[3:5]:
        folder = tmp_path / "official_splits" / "test" / scene
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (9, 99, 199)).save(folder / f"rgb_{number:05d}.jpg")
        Image.fromarray(np.full((24, 32), 2000, np.uint16)).save(folder / f"sync_depth_{number:05d}.png")
    arguments = ["nyu_labelled", "--root", tmp_path, "--split", "test", "-o", tmp_path / "s.png"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "652 of 654 images lack files" in result.output
    assert [row.title for row in rows[0]] == [f"test/{scene}/{number:05d}" for scene, number in frames[3:5]]
    nothing = run(*arguments[:2], tmp_path / "none", *arguments[3:])
    assert nothing.exit_code == 2
    assert "1,308 of 1,308 files are missing" in nothing.output
