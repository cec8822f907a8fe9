import math

import pytest

from made_run import edit, make_run, scores
from sa2depth.errors import DataError
from sa2depth.report.run_files import read_run


def test_no_run(tmp_path):
    with pytest.raises(DataError, match=r"absent is not a folder: name the folder of a finished evaluation"):
        read_run(tmp_path / "absent")
    make_run(tmp_path / "runs" / "a")
    with pytest.raises(DataError, match=r"holds no metrics.json: did you mean .*runs/a\?"):
        read_run(tmp_path / "runs")
    assert read_run(tmp_path / "runs" / "a" / "metrics.json").title == "runs/a"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.json", "{", "not readable JSON"),
        ("metrics.json", "[]", "mapping 'metrics'"),
        ("metrics.json", '{"metrics": {"abs_rel": 1}}', "mapping 'protocol'"),
        ("metrics.json", '{"metrics": {}, "protocol": {}}', "is empty"),
        ("per_image.csv", "index,id,abs_rel,pixels\n0,a,0.1\n", "line 2: expected 4 cells"),
        ("per_image.csv", "index,id,abs_rel\n0,a,0.1,5\n", "line 2: expected 3 cells"),
        ("per_image.csv", "id,abs_rel\na,0.1\nb,bad\n", "line 3: abs_rel must be a number, found 'bad'"),
        ("per_image.csv", "index,id,abs_rel\nnan,a,0.1\n", "line 2: index must be a whole number"),
        ("per_image.csv", "", "expected a column 'id', found no header"),
        ("by_depth.csv", "from,to,pixels,abs_rel,rmse,d1,bias\n0,1,x,1,1,1,1\n", "pixels must be a number"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, file, text, message):
    run = make_run(tmp_path / "run")
    (run / file).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_run(run)
    assert file in str(error.value)


def test_tables_of_two_evaluations_are_noticed(tmp_path):
    run = make_run(tmp_path / "fewer", evaluated_images=654)
    assert any("counts 654 images, but per_image.csv has 3" in gap for gap in read_run(run).gaps)
    run = make_run(tmp_path / "other", metrics=scores(0.3))
    assert any("The mean silog of per_image.csv is 0.233333" in gap for gap in read_run(run).gaps)
    assert not read_run(make_run(tmp_path / "good")).gaps


def test_depth_ranges(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "by_depth.csv").write_text("from,to,pixels,abs_rel,rmse,d1,bias\n")
    assert any("the protocol names no depth ranges" in gap for gap in read_run(run).gaps)
    # those of metrics.json serve where the table is missing
    (run / "by_depth.csv").unlink()
    assert read_run(run).by_depth[2]["to"] == math.inf
    edit(run, by_depth=[])
    assert any("There is no by_depth.csv" in gap for gap in read_run(run).gaps)
