import math

import numpy as np
import pytest

from made_run import NAMES, PROTOCOL, Page, make_run, row
from sa2depth.errors import ConfigError, DataError
from sa2depth.report.paired import compare
from sa2depth.report.run_files import read_run


def test_comparison(tmp_path):
    mine = read_run(make_run(tmp_path / "a", (0.1, 0.2, 0.4, 0.5)))
    theirs = read_run(make_run(tmp_path / "b", (0.2, 0.1, 0.7, 0.5)))
    result = compare(mine, theirs)
    by_name = {metric.name: metric for metric in result.metrics}
    rel = by_name["abs_rel"]
    assert list(by_name) == NAMES
    assert (rel.mean, rel.other_mean, rel.difference) == pytest.approx((0.3, 0.375, -0.075))
    assert rel.standard_error == pytest.approx(np.std([-0.1, 0.1, -0.3, 0.0], ddof=1) / 2)
    assert (rel.better, rel.equal, rel.worse) == (0.5, 0.25, 0.25)
    # shares of pixels within a threshold are better where they are higher
    assert by_name["d1"].difference == pytest.approx(0.025)
    assert (by_name["d1"].better, by_name["d1"].worse) == (0.5, 0.25)
    assert [change[0][-1] for change in result.changes] == ["2", "0", "3", "1"]
    page = Page(mine, [theirs])
    for words in ("On 4 images of both, AbsRel is 0.3000 here and 0.3750 there", "−0.07500",
                  "better on 50.0 % of them and worse on 25.0 %"):  # fmt: skip
        assert words in page.text
    assert "Not compared" not in page.text
    assert repr(rel.standard_error) in page.values("title")
    assert page.text.count("place/00003") == 1  # unchanged: in the table of images only


def test_comparison_of_different_images(tmp_path):
    empty, b, c, d = (row(i, name, 0.1, 5 * (i > 0)) for i, name in enumerate("abcd"))
    mine = read_run(make_run(tmp_path / "a", rows=[empty, b, c, d]))
    theirs = read_run(make_run(tmp_path / "b", rows=[empty, {**d, "index": 1}, {**c, "id": "new"}]))
    result = compare(mine, theirs)
    assert (result.only_here, result.only_there, result.unscored) == (2, 1, 1)
    assert [metric.standard_error for metric in result.metrics] == pytest.approx([math.nan] * 9, nan_ok=True)
    words = "2 only in this run, 1 only in the other, 1 without a score"
    assert words in Page(mine, [theirs]).text


@pytest.mark.parametrize(
    ("error", "message", "rules", "other"),
    [
        (ConfigError, "by nyu_eigen v3, .* by nyu_eigen v4: scores of different protocols", {"version": 4}, {}),
        (ConfigError, "by nyu_none v3", {"name": "nyu_none"}, {}),
        (ConfigError, "different values of crop_box, max_depth", {"max_depth": 8.0, "crop_box": {"top": 0}}, {}),
        (DataError, "share no image", {}, {"ids": ["x", "y", "z"]}),
        (DataError, "'x' is not unique", {}, {"ids": ["x", "x"]}),
        (DataError, r"different pixels of 1 of 1 images \('place/00000': 1000 and 999 pixels\)", {},
         {"rows": [row(0, "place/00000", 0.1, 999)]}),
    ],
)  # fmt: skip
def test_comparisons_that_mean_nothing_are_refused(tmp_path, error, message, rules, other):
    theirs = make_run(tmp_path / "b", protocol={**PROTOCOL, **rules}, **other)
    with pytest.raises(error, match=message):
        compare(read_run(make_run(tmp_path / "a")), read_run(theirs))


def test_a_comparison_needs_the_tables(tmp_path):
    mine, theirs = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (theirs / "per_image.csv").unlink()
    with pytest.raises(DataError, match=r"has no rows in .*which a comparison needs"):
        compare(read_run(mine), read_run(theirs))


OLDER = {"name": "nyu_eigen", "version": 3, "description": "-"}  # lacks rules, and its description is none
FROM_FILES = {**PROTOCOL, "flip": "not applicable", "input": "not applicable"}


@pytest.mark.parametrize("protocol", [OLDER, FROM_FILES])
def test_protocols_that_compare(tmp_path, protocol):
    theirs = read_run(make_run(tmp_path / "b", protocol=protocol))
    assert compare(read_run(make_run(tmp_path / "a")), theirs).metrics[0].equal == 1.0
