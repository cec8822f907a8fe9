"""Operators in Triton: in its interpreter, on the CPU, where there is no GPU; compiled, where there is one."""

import importlib.util

import pytest
import torch
from torch import Tensor

from sa2depth.ops import use_backend

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]

NAN = float("nan")


@pytest.fixture
def device():
    """Where the kernels run."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(autouse=True)
def _kernels(device, monkeypatch):
    """The back end triton is asked for, and what nobody wrote to shows up as NaN."""
    if device.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when a kernel's module is imported

    def poisoned(make):
        return lambda *a, **k: t.fill_(NAN) if (t := make(*a, **k)).is_floating_point() else t

    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    with use_backend("triton"):
        yield
