"""A fast operator is chosen once it was right on this machine, and never when it was wrong."""

import pytest
import torch

from sa2depth.ops import backends, selftest, trust
from sa2depth.ops.selftest import Check

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backends, "_said", set())
    trust._verdict.cache_clear()
    yield
    trust._verdict.cache_clear()


@pytest.fixture
def errors(monkeypatch):
    """What the self-test will find, in turn; it fails when it is asked more often."""
    found = []

    def check(operator, backend, device):
        return Check(operator, backend, found.pop(0))

    monkeypatch.setattr(selftest, "check", check)
    return found


def chosen():
    return backends.choose("dcnv3", {"cpu": lambda: "cpu", "torch": lambda: "torch"}, {}, CPU)()


def test_what_is_right_is_taken_and_tested_once(errors):
    errors.append(1e-6)
    assert [chosen(), chosen()] == ["cpu", "cpu"]
    trust._verdict.cache_clear()  # as in another process
    assert chosen() == "cpu"


def test_what_is_wrong_is_left_alone_with_one_line(errors, caplog):
    errors.append(1e-2)
    assert [chosen(), chosen()] == ["torch", "torch"]
    (record,) = caplog.records
    assert "wrong by 1.0e-02" in record.message
    trust._verdict.cache_clear()
    assert chosen() == "torch"


def test_not_a_number_is_wrong(errors):
    errors.append(float("inf"))
    assert chosen() == "torch"


def test_a_name_is_not_asked(errors):
    with backends.use_backend("cpu"):
        assert chosen() == "cpu"


def test_new_sources_are_tested_anew(errors, monkeypatch, tmp_path):
    errors += [1e-6, 1e-2]
    assert chosen() == "cpu"
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "dcnv3.h").write_text("changed")
    monkeypatch.setattr(trust, "csrc_dir", lambda: tmp_path)
    trust._verdict.cache_clear()
    assert chosen() == "torch"


def test_a_folder_that_cannot_be_written_costs_a_test_in_every_process(errors, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path / "file"))
    errors += [1e-6, 1e-6]
    assert chosen() == "cpu"
    trust._verdict.cache_clear()
    assert chosen() == "cpu"
    assert not errors


@pytest.mark.parametrize("operator", sorted(selftest._OPERATORS))
def test_the_true_operators_are_trusted(operator):
    assert trust.why_not_trusted(operator, "cpu", CPU) == ""


def test_inside_inference_mode():
    with torch.inference_mode():
        assert trust.why_not_trusted("dcnv3", "cpu", CPU) == ""
