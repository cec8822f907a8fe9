from dataclasses import replace
from pathlib import Path

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


def test_no_test_only_lists():
    result = run("--no-test")
    assert result.exit_code == 0
    assert "float64" not in result.output


def test_a_wrong_back_end_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    right = selftest.check
    error = 0.5

    def one_wrong(operator, backend, device):
        check = right(operator, backend, device)
        return replace(check, error=error) if (operator, backend) == ("gated_conv", "cpu") else check

    monkeypatch.setattr(selftest, "check", one_wrong)
    result = run()
    assert result.exit_code == 1
    assert "WRONG" in result.output
    assert "SA2DEPTH_OPS=torch" in result.output
    # the finding stays in force even when the back end is right again
    (note,) = tmp_path.glob("selftest-gated_conv-cpu-*.txt")
    assert "wrong by 5.0e-01" in note.read_text()
    error = 0.0
    assert run().exit_code == 0
    assert note.read_text() == ""


def test_a_failing_back_end_does_not_hide_the_others(monkeypatch, tmp_path):
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path))
    right = selftest.check

    def one_fails(operator, backend, device):
        if (operator, backend) == ("gated_conv", "cpu"):
            raise RuntimeError("launch [error]")
        return right(operator, backend, device)

    monkeypatch.setattr(selftest, "check", one_fails)
    result = run()
    assert result.exit_code == 1
    assert "FAILED launch [error]" in result.output
    assert "selective_scan_2d" in result.output
    assert not list(tmp_path.glob("selftest-gated_conv*"))


def test_an_inaccessible_cache_is_reported(monkeypatch):
    def closed(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", closed)
    result = run("--no-test")
    assert result.exit_code == 0, result.output
    assert "cannot be used (Permission denied), every process compiles again" in " ".join(
        result.output.split()
    )
