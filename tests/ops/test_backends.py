import logging

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import backends, selective_scan_2d, use_backend
from sa2depth.ops import selective_scan_cuda as cuda


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(backends, "_choice", "auto")
    monkeypatch.setattr(backends, "_said", set())


IMPLEMENTATIONS = {"cuda": lambda: "cuda", "torch": lambda: "torch"}


def chosen(reason=""):
    return backends.choose("an_operator", IMPLEMENTATIONS, {"cuda": lambda: reason})()


def test_auto_takes_the_first_that_can():
    assert chosen() == "cuda"
    assert chosen("the input is on the moon") == "torch"


def test_auto_leaves_alone_what_is_there_on_request(monkeypatch):
    monkeypatch.setattr(backends, "ON_REQUEST", frozenset({("an_operator", "cuda")}))
    assert chosen() == "torch"
    with use_backend("cuda"):
        assert chosen() == "cuda"


def test_a_reason_against_it_is_in_the_debug_log(caplog):
    caplog.set_level(logging.DEBUG, "sa2depth")
    chosen("the input is on the moon")
    assert "an_operator does not run on the back end cuda: the input is on the moon" in caplog.text


def test_a_name_takes_that_one_or_says_why_not():
    with use_backend("torch"):
        assert chosen() == "torch"
    with use_backend("cuda"):
        assert chosen() == "cuda"
        with pytest.raises(ConfigError, match="an_operator: the back end 'cuda' was asked for, but it rains"):
            chosen("it rains")


def test_an_operator_without_the_back_end_runs_in_torch():
    with use_backend("cuda"):
        assert backends.choose("other", {"torch": lambda: "torch"}, {})() == "torch"


def test_the_choice_holds_until_the_block_ends_or_for_good():
    with use_backend("torch"):
        with use_backend("cuda"):
            assert backends.backend() == "cuda"
        assert backends.backend() == "torch"
        with pytest.raises(ZeroDivisionError), use_backend("cuda"):
            _ = 1 / 0
        assert backends.backend() == "torch"
    assert backends.backend() == "auto"
    use_backend("torch")
    assert backends.backend() == "torch"


def test_unknown_names_are_errors():
    with pytest.raises(ConfigError, match=r"no back end 'tourch'.*did you mean torch"):
        use_backend("tourch")
    assert backends.backend() == "auto"


def test_the_environment_is_checked_when_an_operator_runs(monkeypatch):
    monkeypatch.setattr(backends, "_choice", "cud")  # as read from SA2DEPTH_OPS
    with pytest.raises(ConfigError, match=r"SA2DEPTH_OPS.*did you mean cuda"):
        chosen()


def test_the_environment_is_read(run_python):
    code = "from sa2depth.ops import backends; print(backends.backend())"
    assert run_python(code, SA2DEPTH_OPS="torch").stdout.split() == ["torch"]


def scan_inputs(states=16, dtype=torch.float32):
    shapes = [(1, 3, 4, 5), (4, 2 + 2 * states, 3), (4, 3, 2), (4, 3), (12, states), (12,)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def test_the_scan_on_a_cpu_says_nothing(caplog):
    selective_scan_2d(*scan_inputs())
    assert not caplog.records
    with use_backend("cuda"), pytest.raises(ConfigError, match=r"selective_scan_2d.*the input is on cpu"):
        selective_scan_2d(*scan_inputs())


class OnDevice:
    """As much of a CUDA tensor as the choice looks at."""

    is_cuda = True

    def __init__(self, dtype=torch.float32, shape=(1, 3, 4, 5)):
        self.dtype, self.shape, self.device = dtype, torch.Size(shape), torch.device("cuda", 0)

    def numel(self):
        return self.shape.numel()


@pytest.mark.parametrize(
    ("tensor", "states", "rank", "reason"),
    [
        (OnDevice(), 16, 16, ""),
        (OnDevice(torch.bfloat16), 16, 1, ""),
        (OnDevice(torch.float64), 16, 16, "float64"),
        (OnDevice(), 8, 16, "state size 16"),
        (OnDevice(), 16, 65, "ranks up to 64"),
        (OnDevice(shape=(0, 3, 4, 5)), 16, 16, "shape"),
        (OnDevice(shape=(70000, 1, 1, 1)), 16, 16, "shape"),
        (OnDevice(shape=(1, 1, 2**16, 2**15)), 16, 16, "shape"),
    ],
)
def test_what_the_kernels_take(tensor, states, rank, reason, monkeypatch):
    monkeypatch.setattr(cuda, "why_unavailable", lambda device: "")
    monkeypatch.setattr(cuda, "_shared_bytes_limit", lambda device: 227 << 10)
    answer = cuda.why_not(tensor, states, rank)
    assert reason in answer if reason else answer == ""


def test_a_machine_without_a_compiler_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(cuda, "why_unavailable", lambda device: "no compiler")
    for _ in range(3):
        assert cuda.why_not(OnDevice(), 16, 16) == "no compiler"
    assert [r.message for r in caplog.records] == [
        "selective_scan_2d is slower here than it could be: no compiler"
    ]


def test_a_device_with_little_shared_memory_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "why_unavailable", lambda device: "")
    monkeypatch.setattr(cuda, "_shared_bytes_limit", lambda device: 64 << 10)
    assert "too little shared memory" in cuda.why_not(OnDevice(), 16, 16)
