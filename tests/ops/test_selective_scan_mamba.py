"""The back end mamba_ssm: how it calls the package, which stands for itself here with its documented meaning."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError
from sa2depth.ops import selective_scan_2d, use_backend
from sa2depth.ops.selective_scan.mamba import run as selective_scan_mamba
from sa2depth.ops.selective_scan.mamba import why_not
from sa2depth.ops.selective_scan.torch import run as selective_scan_torch


def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """``u, delta (B, D, L)``, ``A (D, N)``, ``B, C (B, G, N, L)``, ``D (D)``, ``delta_bias (D)``: token after token."""
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (u, delta, B, C))
    assert z is None
    assert delta_softplus
    delta = F.softplus(delta + delta_bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = delta[..., t, None]
        state = (step * A).exp() * state + step * B[..., t] * u[..., t, None]
        outputs.append((state * C[..., t]).sum(-1) + D * u[..., t])
    return torch.stack(outputs, dim=-1)


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = scan
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def arguments(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    parameters = [draw(4, 11, 8), draw(4, 8, 3), draw(4, 8) - 1, draw(32, 4) * 0.3, draw(32)]
    return draw(2, 8, 5, 7).to(dtype), *parameters


def test_it_scans_as_the_torch_path(package):
    torch.testing.assert_close(
        selective_scan_mamba(*arguments()), selective_scan_torch(*arguments()), rtol=1e-4, atol=1e-4
    )


def test_half_precision_comes_back_as_it_went(package):
    x, *parameters = arguments(torch.bfloat16)
    assert selective_scan_mamba(x, *parameters).dtype == torch.bfloat16


def test_it_refuses_the_cpu():
    assert "cpu" in why_not(arguments()[0])
    with use_backend("mamba_ssm"), pytest.raises(ConfigError, match="mamba_ssm"):
        selective_scan_2d(*arguments())
