"""A run writes its numbers first, so that later failures cannot lose them."""

import json

import pytest
import torch

from sa2depth.metrics import DepthMetrics, Examples, load_protocol
from sa2depth.run import results
from views import uncut


@pytest.fixture
def evaluation():
    protocol = load_protocol("synthetic")
    metrics = DepthMetrics(protocol)
    truth = torch.full((2, 1, 8, 12), 2.0)
    metrics.update(1.1 * truth, uncut(truth, ids=["a", "b"]))
    return metrics.evaluation(split_images=2)


def full(*_arguments, **_options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write_pictures", "write_grid", "median_baseline"])
def test_the_numbers_are_there_before_anything_else_can_fail(step, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(results, step, full)
    model = torch.nn.Linear(1, 1)
    model.spec = {}
    written = []
    monkeypatch.setattr(results, "save_model", lambda _model, path, _extra: written.append(path.name) or path)
    with pytest.raises(OSError, match="No space left"):
        results.finish(tmp_path, evaluation, Examples(total=2), {}, baseline=(None, None), model=model)
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["metrics"]["abs_rel"] == pytest.approx(0.1)
    assert len((tmp_path / "per_image.csv").read_text().splitlines()) == 3
    assert written == ["model.safetensors"]


def test_a_page_of_the_run_is_written_again(evaluation, tmp_path, capsys):
    results.finish(tmp_path, evaluation, Examples(total=2), {})
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "report.html").write_text("of an earlier part of this run")
    results.finish(tmp_path, evaluation, Examples(total=2), {})
    assert "<title>" in (tmp_path / "report.html").read_text()
    assert str(tmp_path / "report.html") in capsys.readouterr().out
