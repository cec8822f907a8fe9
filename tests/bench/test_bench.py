import json
import time

import pytest
import torch

from sa2depth.bench.operators import operator_cases
from sa2depth.bench.run import Settings, run
from sa2depth.bench.timing import measure, replayed
from sa2depth.errors import ConfigError

CPU = torch.device("cpu")


def test_a_time_is_that_of_one_call():
    timing = measure(lambda: time.sleep(0.02), CPU, budget_s=0.1)
    assert 20 <= timing.fastest_ms <= timing.median_ms < 60
    assert 3 <= timing.calls <= 6
    assert timing.peak_mib is None


@pytest.mark.parametrize("model", ["t", "s", "l"])
def test_operator_cases_have_the_shapes_of_the_networks(model):
    cases = operator_cases(model, (64, 96), batch=2)
    assert [case.operator for case in cases] == ["dcnv3"] * 4 + ["rank_attention"] * 4 + ["selective_scan_2d"]
    channels = {"t": 64, "s": 80, "l": 160}[model]
    for level, case in enumerate(cases[:4]):
        function, leaves = case.make(CPU, torch.float32)
        assert function().shape == (2, 16 >> level, 24 >> level, channels << level)
        assert all(leaf.requires_grad for leaf in leaves)
    for level, case in enumerate(cases[4:8]):
        groups, batch, heads, queries, dim = case.make(CPU, torch.float32)[0]().shape
        assert (groups, batch, queries) == (5, 2, (16 >> level) * (24 >> level))
        assert heads * dim == channels << level
    assert cases[8].make(CPU, torch.float32)[0]().shape == (2, 512, 16, 24)


def test_every_subject_is_measured_on_every_back_end():
    settings = Settings(CPU, ["nano"], size=(64, 64), budget_s=0.0, backends=("torch", "auto"))
    rows = list(run(settings))
    subjects = ["encoder", "decoder", "bin head", "depth head", "inference", "training step"]
    assert [row.subject for row in rows] == [subject for subject in subjects for _ in range(2)]
    assert all(row.median_ms > 0 for row in rows)
    for reference, other in zip(rows[::2], rows[1::2], strict=True):
        assert (reference.backend, other.backend) == ("torch", "auto")
        assert reference.speedup == 1
        assert other.speedup == pytest.approx(reference.median_ms / other.median_ms)


def test_operators_are_measured_with_and_without_gradients():
    settings = Settings(CPU, ["t"], what=["operators"], size=(64, 64), budget_s=0.0, backends=("torch",))
    rows = list(run(settings))
    assert len(rows) == 18
    assert sum(row.subject.endswith(", forward") for row in rows) == 9
    assert sum(row.subject.endswith(", forward+backward") for row in rows) == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ["x"]}, "--models x"),
        ({"what": ["trainig"]}, "did you mean training"),
        ({"precisions": ["fp8"]}, "--precision fp8"),
        ({"size": (480, 650)}, "multiples of 32"),
        ({"batch": 0}, "--batch 0"),
        ({"graph": True}, "need a CUDA device, not cpu"),
    ],
)
def test_settings_that_cannot_be_measured(change, words):
    with pytest.raises(ConfigError, match=words):
        Settings(CPU, **change)


def test_an_unknown_back_end_is_an_error():
    with pytest.raises(ConfigError, match="tensorflow"):
        list(run(Settings(CPU, ["nano"], what=["inference"], size=(64, 64), backends=["tensorflow"])))


def test_the_command_writes_a_table_and_json(tmp_path, capsys):
    from typer.testing import CliRunner

    from sa2depth.cli import app

    arguments = "bench --models nano --what inference --size 64x64 --seconds 0 --device cpu --json"
    result = CliRunner().invoke(app, [*arguments.split(), str(tmp_path / "b.json")])
    assert result.exit_code == 0, result.output
    assert "nano fp32 inference" in result.output
    document = json.loads((tmp_path / "b.json").read_text())
    assert [row["backend"] for row in document["rows"]] == ["torch", "auto"]
    assert document["height"] == document["width"] == 64
    assert "threads" in document["device"]


@pytest.mark.gpu
def test_graphs_are_replayed_on_cuda():
    device = torch.device("cuda")
    values = torch.zeros(1, device=device)
    timing = measure(replayed(lambda: values.add_(1), device), device, budget_s=0.0)
    assert values.item() == 2 + timing.calls + 1
    assert timing.peak_mib is not None
    rows = list(run(Settings(device, ["nano"], what=["inference"], size=(64, 64), graph=True, budget_s=0.0)))
    assert all(row.median_ms > 0 for row in rows)
