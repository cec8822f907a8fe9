import math

from made_run import NAMES
from sa2depth.report.metric_facts import facts_of, headline_names, metric_order, number_text


def test_kittis_own_metrics_lead_where_they_are_reported():
    wanted = ["silog", "sq_error_rel", "abs_error_rel", "irmse", "abs_rel"]
    names = metric_order(sorted(wanted), wanted)
    assert list(names) == wanted
    assert headline_names(names) == ("silog", "sq_error_rel", "abs_error_rel", "irmse")
    assert headline_names(tuple(NAMES)) == ("abs_rel", "rmse", "d1")
    assert metric_order(["zeta", "d1", "abs_rel"]) == ("abs_rel", "d1", "zeta")


def test_facts():
    assert [facts_of(name).title for name in ("irmse", "d1", "zeta")] == ["iRMSE (1/km)", "δ < 1.25", "zeta"]
    assert facts_of("zeta").favours(1.0, 2.0) == 0
    assert facts_of("d1").favours(0.9, 0.8) == 1
    assert facts_of("rmse").favours(0.9, 0.8) == -1


def test_numbers_for_people():
    assert number_text(0.05123) == "0.0512"
    assert number_text(-0.5, 2) == "−0.50"
    assert number_text(0.00000123) == "1.2e−06"
    assert number_text(0.0) == "0.0000"
    assert number_text(None) == number_text(math.nan) == "not a number"
    assert number_text(math.inf) == "infinite"
