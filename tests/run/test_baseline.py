"""The median baseline: the files that it reads and keeps, and that its numbers never change."""

import logging
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import MILLIMETRE_PNG
from sa2depth.data.sample import DepthSource, RawSample, camera_matrix, read_depth
from sa2depth.data.source import FileSource
from sa2depth.errors import DataError
from sa2depth.masks import valid_mask
from sa2depth.metrics import MedianDepthMap, aggregate, evaluate_image, load_protocol
from sa2depth.metrics.holes import fill_from_nearest
from sa2depth.run import baseline, median_cache

RULES = replace(load_protocol("synthetic"), min_depth=0.1, max_depth=8.0)


def write_frame(folder, index, size=(24, 40), decode=MILLIMETRE_PNG):
    rng = np.random.default_rng(index)
    image, depth = folder / f"rgb_{index}.jpg", folder / f"depth_{index}.png"
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    values = rng.integers(50, 9000, size, dtype=np.uint16)
    values[rng.uniform(size=size) < 0.4] = 0
    values[3, 5] = 0  # never measured
    cv2.imwrite(str(depth), values)
    return Frame(image, depth, None, f"place/{index}", decode=decode)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """``(train, test)`` of seven and five files; the cache is ``tmp_path / "cache"``."""
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path / "cache"))
    frames = [write_frame(tmp_path, index) for index in range(12)]
    return FileSource(frames[:7]), FileSource(frames[7:])


def as_it_was(train, test, rules):
    """The baseline of version 0.1: PyTorch masks, whole samples, sorted pixel by pixel."""
    maps = [torch.from_numpy(train[i].depth) for i in range(len(train))]
    masked = [
        torch.where(valid_mask(d, rules.min_depth, rules.max_depth), d, torch.inf).numpy() for d in maps
    ]
    block = np.sort(np.stack(masked, axis=-1), axis=-1)
    known = np.isfinite(block).sum(axis=-1)
    lower = np.take_along_axis(block, np.maximum(known - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    upper = np.take_along_axis(block, np.minimum(known // 2, len(maps) - 1)[..., None], axis=-1)[..., 0]
    median = np.where(known > 0, 0.5 * (lower + upper), np.float32(np.inf))
    median = fill_from_nearest(median, known > 0)
    samples = [test[i] for i in range(len(test))]
    rows = [{"id": s.id, **evaluate_image(median, s.depth, rules)} for s in samples]
    return median, {**aggregate(rows, rules), "maps": len(train)}


@pytest.mark.parametrize("limits", [(0.1, 8.0), (0.001, 10.0), (2.345, 5.678)])
def test_every_number_is_the_one_that_it_was(files, limits):
    train, test = files
    rules = replace(RULES, min_depth=limits[0], max_depth=limits[1])
    median, scores = as_it_was(train, test, rules)
    fitted = MedianDepthMap(*limits).fit(train).predict()
    assert fitted.dtype == np.float32
    np.testing.assert_array_equal(fitted, median)
    assert baseline.median_baseline(train, test, rules) == scores
    assert baseline.median_baseline(train, test, rules) == scores  # from the cache


def test_no_photograph_is_decoded(files, monkeypatch):
    train, test = files
    expected = as_it_was(train, test, RULES)[1]

    def refuse(path):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr("sa2depth.data.frame.read_rgb", refuse)
    assert isinstance(train, DepthSource)
    assert baseline.median_baseline(train, test, RULES) == expected
    with pytest.raises(AssertionError, match="was decoded"):
        train[0]


def test_depth_alone_is_that_of_the_sample(files, tmp_path):
    train, _ = files
    np.testing.assert_array_equal(train.depth(2), train[2].depth)
    cv2.imwrite(str(tmp_path / "mask.png"), np.tile(np.uint8([0, 1]), (24, 20)))
    masked = FileSource([replace(train.frames[0], mask=tmp_path / "mask.png")])
    np.testing.assert_array_equal(masked.depth(0), masked[0].depth)
    assert not masked.depth(0)[:, ::2].any()
    assert FileSource([replace(train.frames[0], depth=None)]).depth(0) is None
    other = replace(train.frames[0], depth=write_frame(tmp_path, 90, (20, 40)).depth)
    with pytest.raises(DataError, match=r"expected the size of its image rgb_0\.jpg, 24x40, found 20x40"):
        FileSource([other]).depth(0)
    halved = FileSource(train.frames, prepare=lambda sample: replace(sample, depth=sample.depth / 2))
    np.testing.assert_array_equal(halved.depth(1), train[1].depth / 2)


class Doubled(FileSource):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return replace(sample, depth=sample.depth * 2)


class Plain:
    """A source that cannot read depth alone."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        depth = np.full((24, 40), 1.0 + index, np.float32)
        return RawSample(np.zeros((24, 40, 3), np.uint8), depth, camera_matrix(1, 1, 0, 0), str(index))

    def describe(self):
        return "plain"


def test_sources_that_change_or_make_samples_are_asked_for_whole_ones(files, tmp_path):
    doubled = Doubled(files[0].frames)
    np.testing.assert_array_equal(read_depth(doubled, 1), doubled[1].depth)
    assert read_depth(Plain(), 2)[0, 0] == 3
    assert doubled.fingerprint(range(2)) is None
    assert FileSource(files[0].frames, prepare=lambda sample: sample).fingerprint(range(2)) is None
    assert baseline.median_baseline(Plain(), Plain(), RULES)["maps"] == 3
    baseline.median_baseline(doubled, files[1], RULES)
    assert not (tmp_path / "cache").exists()


def test_small_work_is_done_by_one_thread(files, monkeypatch):
    seen = []
    original = baseline.evaluate_image

    def watched(*arguments):
        seen.append(torch.get_num_threads())
        return original(*arguments)

    monkeypatch.setattr(baseline, "evaluate_image", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        baseline.median_baseline(*files, RULES)
        assert seen == [1] * 5
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the kept map


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "baselines").iterdir())


def count_fits(monkeypatch):
    fits = []
    original = MedianDepthMap.fit

    def fit(self, maps):
        fits.append(self)
        return original(self, maps)

    monkeypatch.setattr(MedianDepthMap, "fit", fit)
    return fits


def test_the_map_is_fitted_once(files, tmp_path, monkeypatch):
    fits = count_fits(monkeypatch)
    first = baseline.median_baseline(*files, RULES)
    assert baseline.median_baseline(*files, RULES) == first
    assert len(fits) == 1
    assert len(kept(tmp_path)) == 1


@dataclass(frozen=True)
class Feet:
    """A user's own decoder."""

    suffixes = (".png",)

    def __call__(self, path, size):
        return MILLIMETRE_PNG(path, size) * np.float32(0.3)


@pytest.mark.parametrize("change", ["content", "time", "limits", "frame", "choice", "decoder"])
def test_whatever_changes_the_map_fits_it_again(change, files, tmp_path, monkeypatch):
    (train, test), rules = files, RULES
    baseline.median_baseline(train, test, rules)
    depth = train.frames[3].depth
    if change == "content":
        cv2.imwrite(str(depth), np.full((24, 40), 4000, np.uint16))
    elif change == "time":
        os.utime(depth, ns=(1, 1))
    elif change == "limits":
        rules = replace(rules, max_depth=7.0)
    elif change == "frame":
        rules = replace(rules, frame=(20, 40))
    elif change == "choice":
        train = FileSource(train.frames[1:])
    else:
        train = FileSource([replace(frame, decode=Feet()) for frame in train.frames])
    fits = count_fits(monkeypatch)
    found = baseline.median_baseline(train, test, rules)
    assert len(fits) == 1
    assert len(kept(tmp_path)) == 2
    if change not in ("frame", "time"):
        assert found == as_it_was(train, test, rules)[1]


@pytest.mark.parametrize("damage", [b"", b"noise", "half", "turned"])
def test_a_damaged_file_is_replaced(damage, files, tmp_path, caplog, monkeypatch):
    first = baseline.median_baseline(*files, RULES)
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    turned = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    path.write_bytes({"half": whole[: len(whole) // 2], "turned": turned}.get(damage, damage))
    fits = count_fits(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert baseline.median_baseline(*files, RULES) == first
    assert caplog.messages == [f"the median depth map is fitted again: {path} is damaged"]
    assert len(fits) == 1
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_a_line(files, tmp_path, caplog, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    expected = as_it_was(*files, RULES)[1]
    with caplog.at_level(logging.WARNING):
        assert baseline.median_baseline(*files, RULES) == expected
    (line,) = caplog.messages
    assert "every run fits it again; set SA2DEPTH_CACHE" in line


def test_a_full_disk_costs_a_line_and_leaves_nothing(files, tmp_path, caplog, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    expected = as_it_was(*files, RULES)[1]
    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert baseline.median_baseline(*files, RULES) == expected
    (line,) = caplog.messages
    assert "No space left on device" in line
    assert kept(tmp_path) == []


def test_a_user_without_a_home_folder_fits_every_time(files, monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    expected = as_it_was(*files, RULES)[1]
    monkeypatch.setattr(median_cache, "user_cache", homeless)
    assert baseline.median_baseline(*files, RULES) == expected


def test_fitting_keeps_few_maps_in_memory(tmp_path, monkeypatch):
    """The maps lie in a temporary file, not in memory, whatever their number."""
    written = []
    original = tempfile.TemporaryFile

    def watched(*arguments, **options):
        written.append(original(*arguments, **options))
        return written[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    maps = (np.full((30, 40), 1.0 + i % 5, np.float32) for i in range(50))
    assert (MedianDepthMap().fit(maps).predict() == 3).all()
    assert len(written) == 1
    assert written[0].closed


def test_a_full_disk_of_temporary_files_costs_the_baseline_alone(files, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    (reason,) = baseline.median_baseline(*files, RULES).values()
    assert "No space left on device" in reason
