import json
import math
import time
from itertools import groupby

import pytest
import torch

from sa2depth.bench import networks
from sa2depth.bench.operators import operator_cases
from sa2depth.bench.run import Settings, Way, run
from sa2depth.bench.timing import _WARM_UPS, measure, replayed
from sa2depth.errors import ConfigError

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def test_a_time_is_that_of_one_call():
    timing = measure(lambda: time.sleep(0.02), CPU, budget_s=0.1)
    assert 20 <= timing.fastest_ms <= timing.median_ms < 60
    assert 3 <= timing.calls <= 6
    assert timing.peak_mib is None


@pytest.mark.parametrize("model", ["t", "s", "l"])
def test_operator_cases_have_the_shapes_of_the_networks(model):
    cases = {operator: list(group) for operator, group in by_operator(model, (64, 96), batch=2)}
    counts = {operator: len(group) for operator, group in cases.items()}
    assert counts == {
        "dcnv3": 4,
        "depthwise_conv": 8,
        "gated_conv": 5,
        "layer_norm": 4,
        "rank_attention": 4,
        "selective_scan_2d": 1,
    }
    channels = {"t": 64, "s": 80, "l": 160}[model]
    maps = [(2, channels << level, 16 >> level, 24 >> level) for level in range(4)]
    for (batch, width, *size), case in zip(maps, cases["dcnv3"], strict=True):
        function, leaves = case.make(CPU, torch.float32)
        assert function().shape == (batch, *size, width)
        assert all(leaf.requires_grad for leaf in leaves)
    for (batch, width, *size), case in zip(maps, cases["rank_attention"], strict=True):
        groups, images, heads, queries, dim = case.make(CPU, torch.float32)[0]().shape
        assert (groups, images, queries) == (5, batch, math.prod(size))
        assert heads * dim == width
    for (batch, width, *size), *pair in zip(maps, *halves(cases["depthwise_conv"]), strict=True):
        layer, modulator = (case.make(CPU, torch.float32)[1] for case in pair)
        assert (layer[0].shape, layer[1].shape) == ((batch, width, *size), (width, 1, 3, 3))
        assert (modulator[0].shape, modulator[1].shape) == ((4 * batch, width, *size), (width, 1, 11, 11))
    shapes = [tuple(case.make(CPU, torch.float32)[1][0].shape) for case in cases["gated_conv"]]
    assert shapes == [*((b, 4 * width, *size) for b, width, *size in maps), (2, 1024, 16, 24)]
    assert cases["selective_scan_2d"][0].make(CPU, torch.float32)[0]().shape == (2, 512, 16, 24)


def by_operator(*arguments, **options):
    return groupby(operator_cases(*arguments, **options), key=lambda case: case.operator)


def halves(cases):
    """The 3x3 kernels and the 11x11 kernels, which alternate."""
    return cases[::2], cases[1::2]


def test_every_subject_is_measured_on_every_back_end():
    settings = Settings(CPU, ["nano"], size=(64, 64), budget_s=0.0, backends=("torch", "auto"))
    rows = list(run(settings))
    subjects = ["encoder", "decoder", "bin head", "depth head", "inference", "training step"]
    assert [row.subject for row in rows] == [subject for subject in subjects for _ in range(2)]
    assert all(row.median_ms > 0 for row in rows)
    assert all(row.peak_mib is None for row in rows)
    for reference, other in zip(rows[::2], rows[1::2], strict=True):
        assert (reference.backend, other.backend) == ("torch", "auto")
        assert reference.speedup == 1
        assert other.speedup == pytest.approx(reference.median_ms / other.median_ms)


def test_operators_are_measured_with_and_without_gradients(monkeypatch):
    coarsest = [list(group)[-1] for _, group in by_operator("t", (32, 32), 1)]
    monkeypatch.setattr("sa2depth.bench.run.operator_cases", lambda *_: coarsest)
    settings = Settings(CPU, ["t"], what=["operators"], size=(32, 32), budget_s=0.0, backends=("auto",))
    rows = list(run(settings))
    names = [f"{case.operator} {case.label}" for case in coarsest]
    assert [row.subject for row in rows] == [
        f"{name}, {how}" for name in names for how in ("forward", "forward+backward")
    ]
    assert all(row.median_ms > 0 for row in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ["x"]}, "--models x"),
        ({"what": ["trainig"]}, "did you mean training"),
        ({"precisions": ["fp8"]}, "--precision fp8"),
        ({"size": (480, 650)}, "multiples of 32"),
        ({"batch": 0}, "--batch 0"),
        ({"backends": ["torch", "tensorflow"]}, "--backends tensorflow: .*torch"),
        ({"backends": ["auto+compil"]}, r"--backends auto\+compil: did you mean compile"),
        ({"backends": ["auto+prepared+graph"]}, "CUDA graphs need a CUDA device, not cpu"),
        ({"backends": ["auto+compile"]}, r"--backends auto\+compile: cpu is not a CUDA device"),
    ],
)
def test_settings_that_cannot_be_measured(change, words):
    with pytest.raises(ConfigError, match=words):
        Settings(CPU, **change)


def test_ways_by_name(monkeypatch):
    monkeypatch.setattr("sa2depth.bench.run.why_not_compiled", lambda device: "")
    cuda = torch.device("cuda")
    assert Way.parse("torch", cuda) == Way("torch")
    assert Way.parse("cuda+prepared", cuda) == Way("cuda", prepared=True)
    # both include the preparation
    assert Way.parse("auto+compile", cuda) == Way("auto", prepared=True, compile=True)
    assert Way.parse("auto+graph", cuda) == Way("auto", prepared=True, graph=True)
    everything = Way("auto", prepared=True, compile=True, graph=True)
    assert (
        Way.parse("auto+prepared+compile+graph", cuda) == everything == Way.parse("auto+graph+compile", cuda)
    )


def test_the_prepared_network_is_measured(monkeypatch):
    seen = []

    def prepared(model, precision, *, compile):
        seen.append((precision, compile))
        return networks.prepared(model, precision, compile=compile)

    monkeypatch.setattr("sa2depth.bench.run.prepared", prepared)
    settings = Settings(
        CPU,
        ["nano"],
        what=["inference", "training"],
        size=(32, 64),
        precisions=["bf16"],
        backends=["auto", "auto+prepared"],
        budget_s=0.0,
    )
    rows = list(run(settings))
    assert all(row.median_ms > 0 for row in rows)
    assert {row.backend for row in rows} == {"auto", "auto+prepared"}
    # training steps have no prepared form
    assert seen == [("bf16", False)]


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
    replay = replayed(lambda: values.add_(1), device)
    before = values.item()
    timing = measure(replay, device, budget_s=0.0)
    assert values.item() - before == _WARM_UPS + timing.calls
    assert timing.peak_mib is not None
    ways = ["auto", "auto+graph", "auto+compile+graph"]
    rows = list(run(Settings(device, ["t"], what=["inference"], size=(96, 128), backends=ways, budget_s=0.0)))
    assert all(row.median_ms > 0 for row in rows)


def test_what_cannot_run_is_a_note_and_the_rest_is_measured(monkeypatch):
    one_of_each = {case.operator: case for case in operator_cases("t", (32, 32), 1)}
    few = [one_of_each["dcnv3"], one_of_each["gated_conv"]]
    monkeypatch.setattr("sa2depth.bench.run.operator_cases", lambda *_: few)
    settings = Settings(
        torch.device("cpu"),
        ["t"],
        ["operators"],
        size=(32, 32),
        precisions=["bf16"],
        backends=["torch", "cpu"],
        budget_s=0.0,
    )
    rows = list(run(settings))
    refused = [row for row in rows if row.median_ms is None]
    assert refused
    assert all(row.subject.startswith("gated_conv") for row in refused)
    assert all(row.backend == "cpu" and "was chosen" in row.note for row in refused)
    assert all(row.median_ms for row in rows if row.backend == "torch")


def test_a_stopped_benchmark_leaves_what_it_has(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from sa2depth.bench import run as module
    from sa2depth.cli import app

    def stopped(settings):
        yield module.Row("t", "inference", "fp32", "torch", 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", stopped)
    CliRunner().invoke(app, ["bench", "--device", "cpu", "--json", str(tmp_path / "b.json")])
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 1


def test_tf32_is_a_precision_of_float32(monkeypatch):
    seen = []
    right = torch.nn.functional.linear

    def linear(*arguments):
        seen.append((torch.get_float32_matmul_precision(), arguments[0].dtype))
        return right(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    settings = Settings(
        torch.device("cpu"),
        ["nano"],
        ["inference"],
        size=(32, 64),
        precisions=["tf32", "fp32"],
        backends=["torch"],
        budget_s=0.0,
    )
    assert [row.precision for row in run(settings)] == ["tf32", "fp32"]
    assert set(seen) == {("high", torch.float32), ("highest", torch.float32)}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("note", "status"), [("out of memory", 0), ("launch failed", 1)])
def test_what_failed_shows_in_the_exit_status(note, status, monkeypatch):
    from typer.testing import CliRunner

    from sa2depth.bench import run as module
    from sa2depth.cli import app

    rows = [
        module.Row("t", "inference", "fp32", "torch", 1.0),
        module.Row("t", "inference", "fp32", "cpu", note=note),
    ]
    monkeypatch.setattr(module, "run", lambda settings: iter(rows))
    result = CliRunner().invoke(app, ["bench", "--device", "cpu"])
    assert result.exit_code == status
    assert note in result.output
