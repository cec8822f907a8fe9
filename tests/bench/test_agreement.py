"""Comparison of the ways to run a network: figures, a row for every way, and errors."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from agreement import assert_same_depth
from sa2depth.bench import agreement, routes
from sa2depth.bench.routes import Route
from sa2depth.cli import app
from sa2depth.models import create_model
from sa2depth.ops import cpu
from sa2depth.weights import save_model

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10.0)
    with torch.no_grad():
        model.depth_head.score.weight.mul_(30)  # fresh weights predict nearly the same everywhere
    return str(save_model(model, tmp_path_factory.mktemp("model") / "nano.safetensors"))


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "--what", "agreement", "--device", "cpu", *map(str, arguments)])


def test_the_figures_of_a_row():
    reference = np.full((1, 2, 5), 2.0)
    found, truth = reference.copy(), np.full((1, 2, 5), 1.6)
    found[0, 0, 0], found[0, 0, 1] = 2.2, 2.05
    truth[0, 1] = 0  # not measured
    row = agreement.compare("a way", found, reference, truth)
    assert row.rms_percent == pytest.approx(100 * ((0.1**2 + 0.025**2) / 10) ** 0.5)
    assert (row.over_1_percent, row.over_5_percent) == (0.2, 0.1)
    assert row.largest_m == pytest.approx(0.2)
    assert row.abs_rel_change == pytest.approx((0.2 + 0.05) / 1.6 / 5)
    assert agreement.compare("a way", found, reference).abs_rel is None


@pytest.mark.code_path
def test_every_way_of_a_cpu_is_compared(checkpoint, monkeypatch):
    """Routes in this process; routes that need a process of their own are tested below."""
    monkeypatch.setattr(routes, "_in_a_process", lambda route, *rest: routes.depths(routes.REFERENCE, *rest))
    pictures = agreement.generated(2, (32, 64), "streets", 10.0)
    rows = {row.route: row for row in agreement.run(checkpoint, pictures, CPU)}
    assert [name for name in rows if name.startswith("float64")] == ["float64, torch path"]
    assert rows["float64, torch path"].abs_rel > 0.1
    for word in (
        "torch path",
        "norms folded",
        "batches of 8",
        "thread",
        "ATEN",
        "ONEDNN",
        "CPU_PATH=portable",
        "bf16",
    ):
        assert any(word in name for name in rows), word
    for name, row in rows.items():
        if row.note:
            assert row.note.startswith("not run: "), row
        elif "bf16" in name:
            assert 1e-4 < row.rms_percent < 5
            assert row.abs_rel_change != 0
        else:
            assert row.rms_percent < 0.1, row
            assert row.over_1_percent < 0.01, row
    assert cpu.why_unavailable() or rows["float32, CPU library"].rms_percent > 0


def test_a_code_path_of_pytorch_takes_a_process_of_its_own(checkpoint):
    images = agreement.generated(1, (32, 64), "rooms", 10.0).images
    here = routes.depths(Route("here", "torch"), checkpoint, images, CPU)
    there = Route("there", "torch", environment={"ATEN_CPU_CAPABILITY": "default"})
    assert_same_depth(routes.depths(there, checkpoint, images, CPU), here)


def test_a_process_that_fails_says_why(tmp_path):
    route = Route("broken", environment={"SA2DEPTH_BENCH_THREADS": "x"})
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1: .*invalid literal for int"):
        routes.depths(route, "absent", torch.rand(1, 3, 32, 32), CPU)


def test_settings_of_a_way_end_with_it(checkpoint):
    images, threads = torch.rand(1, 3, 32, 32), torch.get_num_threads()
    seen = []
    route = Route("other", threads=threads + 1, precision="tf32", exact_convolutions=True)
    with routes._settings(route):
        seen += [
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
        ]
    assert seen == [threads + 1, "high", False]
    assert routes.depths(route, checkpoint, images, CPU).shape == (1, 32, 32)
    assert torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32


def test_the_command_on_photographs(checkpoint, tmp_path):
    for name in "ab":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    out = tmp_path / "a.json"
    done = bench("-c", checkpoint, "--images", tmp_path, "--size", "64x96", "--only", "folded", "--json", out)
    assert done.exit_code == 0, done.output
    assert "2 images" in done.output
    document = json.loads(out.read_text())
    assert [row["route"] for row in document["rows"]] == [
        "float64, torch path",
        "float32, prepared (norms folded)",
    ]
    assert document["rows"][1]["rms_percent"] < 0.1
    assert document["rows"][1]["abs_rel"] is None
    assert (document["height"], document["width"]) == (64, 96)


def test_a_way_that_fails_is_named_and_the_rest_is_compared(checkpoint, monkeypatch):
    ways = [
        Route("broken", environment={"SA2DEPTH_CPU_PATH": "x"}),
        Route("whole"),
        Route("none", why_not="no GPU"),
    ]
    monkeypatch.setattr("sa2depth.bench.agreement.routes", lambda device: ways)

    def fails(*_):
        raise RuntimeError("its process ended\nwith status 1")

    monkeypatch.setattr(routes, "_in_a_process", fails)
    done = bench("-c", checkpoint, "--size", "32x32", "--count", "1")
    assert done.exit_code == 1
    for words in ("failed: with status 1", "not run: no GPU", "1 of 4 could not be measured"):
        assert words in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "add --checkpoint"),
        (["--size", "64x90"], "--size 64x90: .*multiples of 32"),
        (["--only", "nothing"], "--only nothing: no way"),
        (["--images", "absent.png"], "absent.png: there is no such photograph"),
    ],
)
def test_what_cannot_be_compared(options, words, checkpoint):
    done = bench(*(["-c", checkpoint, "--size", "32x32", *options] if options else []))
    assert done.exit_code == 2
    assert re.search(words, " ".join(done.output.split())), done.output


def test_agreement_stands_alone():
    done = CliRunner().invoke(app, ["bench", "--what", "agreement,training", "--device", "cpu"])
    assert done.exit_code == 2
    assert "agreement cannot be combined with others" in " ".join(done.output.split())


def test_the_ways_of_a_cuda_device(monkeypatch):
    monkeypatch.setattr(routes, "why_not_compiled", lambda device: "no compiler")
    found = {route.name: route for route in routes.routes(torch.device("cuda"))}
    assert {route.precision for route in found.values()} == {"fp32", "tf32", "bf16", "fp16"}
    assert any(route.graph and route.batch == routes.BATCH for route in found.values())
    assert all(route.why_not == "no compiler" for route in found.values() if route.compile)
    assert [name for name, route in found.items() if route.device == "cpu"] == [
        "float32, prepared, on the CPU"
    ]
