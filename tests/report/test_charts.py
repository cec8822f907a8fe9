"""Charts are read back from their SVG: each bar with its tooltip, colour and box."""

import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from sa2depth.report import charts

GAUSS = np.random.RandomState(0)


def shapes(chart):
    """Tooltip, style and corners ``(N, 2)`` of each bar or curve."""
    found = []
    for group in ElementTree.fromstring(chart).iter("g"):
        if group.get("class") == "hint":
            note, path = group
            points = np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d")), float)
            found.append((note.text, path.get("style"), points))
    return found


def counts(chart, ink=""):
    """Images of the bars of a colour."""
    return sum(int(re.search(r"(\d+) images?", note)[1]) for note, style, _ in shapes(chart) if ink in style)


def axis_texts(chart, anchor):
    texts = ElementTree.fromstring(chart).iter("text")
    return [text.text for text in texts if f"text-anchor: {anchor}" in text.get("style")]


def test_histograms_count_every_finite_image():
    values = [*GAUSS.normal(0.1, 0.02, 500), 5.0, 7.0, math.nan, math.inf]
    chart = charts.histogram(values, "AbsRel")
    assert counts(chart) == 502
    # the outliers share one bar and do not stretch the axis
    beyond = re.search(r"<title>(\d+) images above (\S+)</title>", chart)
    assert 2 <= int(beyond[1]) == counts(chart, "var(--pale)") <= 8
    assert float(beyond[2]) < 0.2
    assert f"{beyond[1]} beyond" in chart
    assert "502 images" in ElementTree.fromstring(chart).get("aria-label")
    mirrored = charts.histogram([-value for value in values], "x")
    assert re.search(r"<title>(\d+) images below −(\S+)</title>", mirrored)[1] == beyond[1]
    assert counts(mirrored) == 502
    assert charts.histogram([math.nan], "x") == ""
    assert axis_texts(charts.histogram([0.1, 0.2, 0.4], "x"), "end") == [
        "0",
        "1",
    ]  # numbers of images are whole
    for few in ([0.1], [0.1] * 9, [0.1, 0.2], [0.0, 0.0]):
        assert counts(charts.histogram(few, "x")) == len(few)


def test_differences_are_parted_at_zero():
    values = GAUSS.normal(0.01, 0.05, 400)
    chart = charts.histogram(values, "x", lambda middle: "bad" if middle > 0 else "good")
    assert counts(chart, "var(--good)") == (values < 0).sum()
    assert counts(chart, "var(--bad)") == (values > 0).sum()


def test_cumulative_curves():
    chart = charts.cumulative([("one", [0.0, 1.0]), ("two", [1.0, 1.0, math.nan])], "x")
    (one, ink, first), (two, other_ink, second) = shapes(chart)
    assert (one, two) == ("one", "two")
    assert ink != other_ink
    low, high = second[0, 1], first[-1, 1]
    assert first[0, 1] == pytest.approx((low + high) / 2)  # half of the images have 0
    assert second[-1, 1] == high
    assert charts.cumulative([("none", [math.nan])], "x") == ""


def test_columns():
    chart = charts.columns(["a", "b", "c"], [1.0, math.nan, -2.0], "x", lambda v: f"{v:g}")
    assert [note for note, _, _ in shapes(chart)] == ["a: 1", "c: -2"]
    small, large = (np.ptp(points[:, 1]) for _, _, points in shapes(chart))
    assert large == pytest.approx(2 * small, rel=0.01)
    assert charts.columns(["a"], [math.nan], "x", str) == ""
    assert charts.columns(["a"], [0.0], "x", str)
    shares = charts.columns(["a"], [0.5], "x", lambda share: f"{100 * share:.0f} %")
    assert axis_texts(shares, "end")[:2] == ["0 %", "20 %"]
    many = axis_texts(charts.columns(list("abcdefghi"), range(9), "x", str), "middle")
    assert many == ["a", "c", "e", "g", "i", "x"]  # all names would touch each other


def test_words_stand_in_a_chart_as_they_are():
    for words in ("<b>&\"'", "$x_1$ and $", "深度"):
        histogram = ElementTree.fromstring(charts.histogram([1.0, 2.0], words))
        assert histogram.get("aria-label").startswith(f"Histogram of {words}:")
        assert words in [text.text for text in histogram.iter("text")]
        assert shapes(charts.cumulative([(words, [1.0])], "x"))[0][0] == words
        assert shapes(charts.columns([words], [1.0], "x", str))[0][0] == f"{words}: 1.0"


def test_a_chart_is_a_part_of_the_page_in_light_and_dark():
    def drawn():
        return charts.histogram([*range(300), 9999], "x", lambda middle: "bad")

    chart = drawn()
    # ids, addresses and styles would affect the whole page, and fixed colours would stay when it turns dark
    assert not re.search(r"\bid=|href|url\(|https?:|<style|<defs|font-family|#[0-9a-f]{3}", chart)
    with matplotlib.rc_context({"text.color": "white", "axes.labelcolor": "red", "svg.fonttype": "path"}):
        assert drawn() == chart
