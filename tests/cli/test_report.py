import json

import pytest
import typer
from typer.testing import CliRunner

from sa2depth.cli.friendly import friendly
from sa2depth.cli.report import report

TABLE = "index,id,abs_rel,pixels,nonfinite_pixels\n0,a,{},5,0\n1,b,0.5,5,0\n"


@pytest.fixture
def run(tmp_path):
    """``run(arguments)`` of the command alone."""
    app = typer.Typer()
    app.command()(friendly(report))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def evaluation(folder, value=0.1, name="nyu_eigen"):
    folder.mkdir(parents=True)
    document = {
        "metrics": {"abs_rel": (value + 0.5) / 2},
        "protocol": {"name": name, "version": 1},
        "images": 2,
    }
    (folder / "metrics.json").write_text(json.dumps(document))
    (folder / "per_image.csv").write_text(TABLE.format(value))
    return folder


def test_a_page_for_each_run(run, tmp_path):
    a, b = evaluation(tmp_path / "a"), evaluation(tmp_path / "b")
    result = run(a, b)
    assert result.exit_code == 0, result.output
    for folder in (a, b):
        assert f"wrote {folder.resolve() / 'report.html'} (" in result.output.replace("\n", "")
        assert "<!doctype html>" in (folder / "report.html").read_text()
    assert "There is no by_depth.csv" in result.output


def test_output_and_comparison(run, tmp_path):
    a, b, c = (evaluation(tmp_path / name, value) for name, value in zip("abc", (0.1, 0.2, 0.3), strict=True))
    page = tmp_path / "pages" / "x.html"
    result = run(a, "--output", page, "--compare", b, "-c", c)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("With ") == 2
    assert not (a / "report.html").exists()
    assert 'href="../a/per_image.csv"' in text
    # one of several runs may be the reference
    assert run(a, b, "--compare", a).exit_code == 0
    assert "Compared image by image" not in (a / "report.html").read_text()
    assert "Compared image by image" in (b / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b", "--output", "x.html"), "names one file, but there are 2 runs"),
        (("a", "--output", "b"), "is a folder"),
        (("a", "absent"), "absent is not a folder"),
        (("a", "--compare", "a"), "is the run itself"),
        (("a", "--compare", "other"), "scores of different protocols cannot be compared"),
        ((".",), "did you mean"),
    ],
)
def test_errors_are_one_message(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        evaluation(tmp_path / name)
    evaluation(tmp_path / "other", name="kitti_eigen_garg")
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.rglob("*.html"))
