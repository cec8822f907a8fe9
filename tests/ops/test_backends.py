import logging

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.ops import choice, dispatch, selective_scan_2d, use_backend
from sa2depth.ops.registry import Backend, Operator
from sa2depth.ops.runtime import notices
from sa2depth.ops.selective_scan import cuda


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(choice, "_choice", "auto")
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(dispatch, "why_not_trusted", lambda *key: "")


def chosen(reason="", **kind):
    fast = Backend("cuda", lambda x: "cuda", lambda x: reason, **kind)
    operator = Operator("an_operator", (fast, Backend("torch", lambda x: "torch")), None)
    x = torch.zeros(1, requires_grad=True)
    return dispatch.choose(operator, x)(x)


def test_auto_takes_the_first_that_can():
    assert chosen() == "cuda"
    assert chosen("the input is on the moon") == "torch"


def test_auto_leaves_alone_what_is_there_on_request():
    assert chosen(on_request=True) == "torch"
    with use_backend("cuda"):
        assert chosen(on_request=True) == "cuda"


def test_what_has_no_backward_pass_does_not_exist_where_a_gradient_is_wanted():
    for name in ("auto", "cuda"):
        with use_backend(name):
            assert chosen(inference_only=True) == "torch"
            with torch.no_grad():
                assert chosen(inference_only=True) == "cuda"


def test_a_reason_against_it_is_in_the_debug_log(caplog):
    caplog.set_level(logging.DEBUG, "sa2depth")
    chosen("the input is on the moon")
    assert "an_operator does not run on the back end cuda: the input is on the moon" in caplog.text


def test_a_name_takes_that_one_or_says_why_not():
    with use_backend("torch"):
        assert chosen() == "torch"
    with use_backend("cuda"):
        assert chosen() == "cuda"
        with pytest.raises(ConfigError, match="an_operator: the back end 'cuda' was chosen, but it rains"):
            chosen("it rains")


def test_an_operator_without_the_back_end_runs_in_torch():
    with use_backend("triton"):
        assert chosen() == "torch"


def test_the_choice_holds_until_the_block_ends_or_for_good():
    with use_backend("torch"):
        with use_backend("cuda"):
            assert choice.backend() == "cuda"
        assert choice.backend() == "torch"
        with pytest.raises(ZeroDivisionError), use_backend("cuda"):
            _ = 1 / 0
        assert choice.backend() == "torch"
    assert choice.backend() == "auto"
    use_backend("torch")
    assert choice.backend() == "torch"


def test_unknown_names_are_errors():
    with pytest.raises(ConfigError, match=r"no back end 'tourch'.*did you mean torch"):
        use_backend("tourch")
    assert choice.backend() == "auto"


def test_the_environment_is_checked_when_an_operator_runs(monkeypatch):
    monkeypatch.setattr(choice, "_choice", "cud")  # as read from SA2DEPTH_OPS
    with pytest.raises(ConfigError, match=r"SA2DEPTH_OPS.*did you mean cuda"):
        chosen()


def test_the_environment_is_read(run_python):
    code = "from sa2depth.ops import choice; print(choice.backend())"
    assert run_python(code, SA2DEPTH_OPS="torch").stdout.split() == ["torch"]


def scan_inputs(states=16, dtype=torch.float32):
    shapes = [(1, 3, 4, 5), (4, 2 + 2 * states, 3), (4, 3, 2), (4, 3), (12, states), (12,)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def test_the_scan_on_a_cpu_says_nothing(caplog):
    selective_scan_2d(*scan_inputs())
    assert not caplog.records
    with use_backend("cuda"), pytest.raises(ConfigError, match=r"selective_scan_2d.*the input is on cpu"):
        selective_scan_2d(*scan_inputs())


def parameters(states, rank):
    shapes = [(4, rank + 2 * states, 3), (4, 3, rank), (4, 3), (12, states), (12,)]
    return [torch.empty(shape) for shape in shapes]


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
    monkeypatch.setattr(cuda, "shared_bytes_limit", lambda device: 227 << 10)
    answer = cuda.why_not(tensor, *parameters(states, rank))
    assert reason in answer if reason else answer == ""


def test_a_machine_without_a_compiler_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(cuda, "why_unavailable", lambda device: "no compiler")
    for _ in range(3):
        assert cuda.why_not(OnDevice(), *parameters(16, 16)) == "no compiler"
    assert [r.message for r in caplog.records] == [
        "selective_scan_2d is slower here than it could be: no compiler"
    ]


def test_a_device_with_little_shared_memory_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "why_unavailable", lambda device: "")
    monkeypatch.setattr(cuda, "shared_bytes_limit", lambda device: 64 << 10)
    assert "too little shared memory" in cuda.why_not(OnDevice(), *parameters(16, 16))
