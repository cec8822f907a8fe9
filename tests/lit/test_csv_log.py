"""``metrics.csv`` over an interruption, a second start in its folder, and a full disk."""

import csv
import logging

import pytest

from sa2depth.lit import CsvLog


def logger(folder):
    return CsvLog(save_dir=str(folder), name=None, version="")


def rows(folder, name="metrics.csv"):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def logged(log, steps, **more):
    for step in steps:
        log.log_metrics({"train/loss": float(step), **more}, step=step)
    return log


@pytest.fixture
def first(tmp_path):
    """Steps 0 to 3, and a score of test images."""
    folder = tmp_path / "first"
    log = logged(logger(folder), range(4))
    log.log_metrics({"test/abs_rel": 0.5}, step=4)
    log.save()
    return folder


def test_a_fresh_run_keeps_the_file_of_an_earlier_one(first, caplog):
    before = (first / "metrics.csv").read_text()
    for number in (1, 2):
        with caplog.at_level(logging.WARNING):
            logged(logger(first), [number]).save()
        assert f"its metrics.csv was renamed to metrics_{number}.csv" in caplog.text
    assert (first / "metrics_1.csv").read_text() == before
    assert [row["step"] for row in rows(first)] == ["2"]


@pytest.mark.parametrize("place", ["same", "new"])
def test_a_resumed_run_goes_on_in_one_file(first, tmp_path, place, caplog):
    folder = first if place == "same" else tmp_path / "new"
    log = logger(folder)
    log.go_on_from(first / "metrics.csv", 4)
    logged(log, [4, 5], new=1.0).save()
    log.save()
    assert [row["step"] for row in rows(folder)] == ["0", "1", "2", "3", "4", "4", "5"]
    assert [row["test/abs_rel"] for row in rows(folder)] == ["", "", "", "", "0.5", "", ""]
    assert [row["new"] for row in rows(folder)] == ["", "", "", "", "", "1.0", "1.0"]
    assert len(rows(first)) == (7 if place == "same" else 5)
    assert not list(folder.glob("metrics_*"))
    assert caplog.text == ""


def test_steps_that_come_again_are_not_there_twice(first):
    log = logger(first)
    log.go_on_from(first / "metrics.csv", 2)
    logged(log, [2, 3, 4]).save()
    assert [row["step"] for row in rows(first)] == ["0", "1", "2", "3", "4"]
    assert len(rows(first, "metrics_1.csv")) == 5  # nothing is lost


def test_a_checkpoint_whose_run_has_no_file(first, tmp_path):
    log = logger(first)
    log.go_on_from(tmp_path / "nowhere" / "metrics.csv", 2)
    logged(log, [2]).save()
    assert [row["step"] for row in rows(first)] == ["2"]
    assert len(rows(first, "metrics_1.csv")) == 5


def test_the_file_reaches_as_far_as_the_checkpoint(tmp_path):
    log = logged(logger(tmp_path), [0])
    assert not (tmp_path / "metrics.csv").exists()
    log.after_save_checkpoint(None)
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize("new_column", [False, True])
def test_a_full_disk_costs_a_line_and_no_row(tmp_path, monkeypatch, caplog, new_column):
    log = logged(logger(tmp_path), [0])
    log.save()
    log.log_metrics({"train/loss": 1.0, **({"more": 1.0} if new_column else {})}, step=1)

    def full(writer, rows):
        writer.writerow(rows[0])  # half of it
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", full)
        log.save()
        log.save()
        assert len(rows(tmp_path)) == 1
    assert caplog.text.count("cannot be written (No space left on device): its rows wait in memory") == 1
    log.save()
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
