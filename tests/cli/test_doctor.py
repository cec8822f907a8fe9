from dataclasses import replace

from typer.testing import CliRunner

from sa2depth.cli import app
from sa2depth.ops import selftest


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", "--device", "cpu", *arguments])


def test_it_names_versions_back_ends_and_errors():
    result = run()
    assert result.exit_code == 0, result.output
    for word in (
        "torch",
        "cuda-core",
        "CPU library",
        "kernel cache",
        "SA2DEPTH_CACHE",
        "dcnv3",
        "rank_attention",
    ):
        assert word in result.output
    assert "every back end that runs here is right" in result.output


def test_looking_only():
    result = run("--no-test")
    assert result.exit_code == 0
    assert "float64" not in result.output


def test_a_wrong_back_end_is_an_alarm(monkeypatch):
    right = selftest.self_test

    def one_wrong(device):
        for number, check in enumerate(right(device)):
            yield replace(check, error=0.5) if number == 0 else check

    monkeypatch.setattr(selftest, "self_test", one_wrong)
    result = run()
    assert result.exit_code == 1
    assert "WRONG" in result.output
    assert "SA2DEPTH_OPS=torch" in result.output
