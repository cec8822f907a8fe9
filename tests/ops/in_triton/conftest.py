"""Operators in Triton: in its interpreter, on the CPU, where there is no GPU; compiled, where there is one."""

import importlib.util

import pytest
import torch
from torch import Tensor

from sa2depth.ops import use_backend
from sa2depth.ops.runtime.triton import interpreted

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from triton.runtime import interpreter

NAN = float("nan")


@pytest.fixture
def device():
    """Where the kernels run."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _with_index(patch):
    """Triton 3.6 makes loop bounds of arrays of one number in a way that NumPy 2.4 no longer has."""

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return patched


@pytest.fixture(autouse=True)
def _kernels(device, monkeypatch):
    """The back end triton is asked for, and what nobody wrote to shows up as NaN."""
    if device.type == "cpu":
        assert interpreted()
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", _with_index(interpreter._patch_lang_tensor))

    def poisoned(make):
        return lambda *a, **k: t.fill_(NAN) if (t := make(*a, **k)).is_floating_point() else t

    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    with use_backend("triton"):
        yield
