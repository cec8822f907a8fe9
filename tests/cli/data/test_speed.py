import json

from typer.testing import CliRunner

from sa2depth.cli import app

SMALL = ["data.train.count=6", "data.train.height=24", "data.train.width=32"]


def run(*arguments):
    return CliRunner().invoke(app, ["data", "speed", *map(str, arguments)])


def test_all_rows_are_printed_and_written(tmp_path):
    options = ["--workers", "0,1", "--seconds", 0.1, "--batch-size", 2, "--json", tmp_path / "speed.json"]
    result = run("synthetic", *SMALL, "--augment", "synthetic", *options)
    assert result.exit_code == 0, result.output
    for words in ("make sample", "augment", "tensor", "collate", "24x32", "images/s", "per worker", "fewest"):
        assert words in result.output
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert [row["workers"] for row in measured["loader"]] == [0, 1]
    assert all(row["images_per_second"] > 0 for row in measured["loader"])
    assert list(measured["stage_ms"]) == ["make sample", "augment", "tensor", "collate"]
    assert measured["batch_size"] == 2
    assert measured["size"] == [24, 32]
    assert measured["enough_workers"] in (0, 1)
