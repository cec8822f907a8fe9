"""A fast operator is chosen once it was right on this machine, and never when it was wrong."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from sa2depth.errors import ConfigError
from sa2depth.ops import choice, cpu, gated_conv, trust
from sa2depth.ops.dispatch import choose
from sa2depth.ops.registry import OPERATORS, Backend
from sa2depth.ops.runtime import notices
from sa2depth.ops.runtime.nvrtc import cache_dir
from sa2depth.ops.selftest import Check

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SA2DEPTH_CPU_PATH", raising=False)
    monkeypatch.setattr(notices, "_said", set())
    trust._known.clear()
    yield
    trust._known.clear()


@pytest.fixture
def errors(monkeypatch):
    """What the self-test will find, in turn; it fails when it is asked more often."""
    found = []

    def check(operator, backend, device):
        return Check(operator, backend, found.pop(0))

    monkeypatch.setattr(trust, "check", check)
    return found


def chosen():
    named = (Backend(name, lambda x, name=name: name) for name in ("cpu", "torch"))
    x = torch.zeros(1)
    return choose(replace(OPERATORS["dcnv3"], backends=tuple(named)), x)(x)


def test_what_is_right_is_taken_and_tested_once(errors):
    errors.append(1e-6)
    assert [chosen(), chosen()] == ["cpu", "cpu"]
    trust._known.clear()  # as in another process
    assert chosen() == "cpu"


def test_what_is_wrong_is_left_alone_with_one_line(errors, caplog):
    errors.append(1e-2)
    assert [chosen(), chosen()] == ["torch", "torch"]
    (record,) = caplog.records
    assert "wrong by 1.0e-02" in record.message
    trust._known.clear()
    assert chosen() == "torch"


def test_not_a_number_is_wrong(errors):
    errors.append(float("inf"))
    assert chosen() == "torch"


def test_a_name_is_not_asked(errors):
    with choice.use_backend("cpu"):
        assert chosen() == "cpu"


def test_new_sources_are_tested_anew(errors, monkeypatch, tmp_path):
    errors += [1e-6, 1e-2]
    assert chosen() == "cpu"
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "dcnv3.h").write_text("changed")
    operator = OPERATORS["dcnv3"]
    changed = replace(operator.backend("cpu"), sources=(tmp_path / "cpu" / "dcnv3.h",))
    monkeypatch.setitem(OPERATORS, "dcnv3", replace(operator, backends=(changed,)))
    trust._known.clear()
    assert chosen() == "torch"


def test_a_folder_that_cannot_be_written_costs_a_test_in_every_process(errors, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SA2DEPTH_CACHE", str(tmp_path / "file"))
    errors += [1e-6, 1e-6]
    assert chosen() == "cpu"
    trust._known.clear()
    assert chosen() == "cpu"
    assert not errors


@pytest.mark.parametrize(
    "operator", [name for name, operator in OPERATORS.items() if "cpu" in {b.name for b in operator.backends}]
)
def test_the_true_operators_are_trusted(operator):
    assert trust.why_not_trusted(operator, "cpu", CPU) == ""


def test_inside_inference_mode():
    with torch.inference_mode():
        assert trust.why_not_trusted("dcnv3", "cpu", CPU) == ""


def _in_export():
    class Gate(torch.nn.Module):
        def forward(self, x, weight, bias):
            return gated_conv(x, weight, bias)

    return torch.export.export(Gate(), INPUTS).module()(*INPUTS)


def _under_fake_tensors():
    with FakeTensorMode() as mode:
        gated_conv(*(mode.from_tensor(tensor) for tensor in INPUTS))
    return gated_conv(*INPUTS)


def _under_a_transform():
    torch.func.vmap(lambda x: x + gated_conv(*INPUTS).sum())(torch.zeros(2))
    return gated_conv(*INPUTS)


def _with_another_default_device():
    with torch.device("meta"):
        return gated_conv(*INPUTS)


def _counting():
    with FlopCounterMode(display=False) as counter:
        result = gated_conv(*INPUTS)
    assert counter.get_total_flops() < 1e6
    return result


INPUTS = torch.rand(1, 8, 6, 6), torch.rand(8, 4, 3, 3), torch.rand(8)


@pytest.mark.parametrize(
    "first",
    [_in_export, _under_fake_tensors, _under_a_transform, _with_another_default_device, _counting],
    ids=lambda function: function.__name__.strip("_"),
)
def test_the_first_call_may_be_anywhere(first):
    with torch.no_grad():
        result = first()
        with choice.use_backend("torch"):
            torch.testing.assert_close(result, gated_conv(*INPUTS))


def test_many_threads_at_once(monkeypatch):
    asked = []
    right = trust.check
    monkeypatch.setattr(trust, "check", lambda *a: asked.append(a[:2]) or right(*a))
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: gated_conv(*INPUTS), range(8)))
    assert all(torch.equal(result, results[0]) for result in results)
    assert asked == [("gated_conv", "cpu")]
    assert choice.backend() == "auto"


def test_the_choice_of_a_thread_is_its_own():
    with choice.backend_of_this_thread("cpu"), ThreadPoolExecutor(1) as pool:
        assert choice.backend() == "cpu"
        with choice.backend_of_this_thread("torch"):
            assert choice.backend() == "torch"
        assert choice.backend() == "cpu"
        assert pool.submit(choice.backend).result() == "auto"
    assert choice.backend() == "auto"


def test_another_code_path_is_tested_anew(monkeypatch):
    names = {trust._note("gated_conv", "cpu", CPU)}
    monkeypatch.setenv("SA2DEPTH_CPU_PATH", "portable")
    names.add(trust._note("gated_conv", "cpu", CPU))
    assert len(names) == 2 or cpu.paths() == ["portable"]


def test_an_unreadable_note_is_no_note(errors):
    errors += [1e-6, 1e-6]
    assert chosen() == "cpu"
    (note,) = cache_dir().iterdir()
    note.write_bytes(b"\xff\xfe")
    trust._known.clear()
    assert chosen() == "cpu"
    assert note.read_text() == ""


def test_a_folder_that_may_not_be_entered(errors, monkeypatch):
    def closed(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    errors.append(1e-6)
    for name in ("read_text", "write_text", "mkdir"):
        monkeypatch.setattr(Path, name, closed)
    assert [chosen(), chosen()] == ["cpu", "cpu"]


def test_tangents_are_not_lost():
    x, weight, bias = (tensor.double() for tensor in INPUTS)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x.float(), torch.ones_like(x).float())
        tangent = forward_ad.unpack_dual(gated_conv(dual, *INPUTS[1:])).tangent
        with choice.use_backend("cpu"), pytest.raises(ConfigError, match="no derivatives in forward mode"):
            gated_conv(dual, *INPUTS[1:])
    step = 1e-6
    with choice.use_backend("torch"):
        expected = (gated_conv(x + step, weight, bias) - gated_conv(x - step, weight, bias)) / (2 * step)
    torch.testing.assert_close(tangent.double(), expected, rtol=1e-3, atol=1e-4)
