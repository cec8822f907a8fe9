import sys

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ShapeError
from sa2depth.ops import selective_scan_2d
from sa2depth.ops.selective_scan.torch import linear_recurrence


def make(size, batch=2, channels=5, states=3, rank=2, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, channels, *size),
        (4, rank + 2 * states, channels),
        (4, channels, rank),
        (4, channels),
        (4 * channels, states),
        (4 * channels,),
    ]
    return [torch.randn(shape, generator=random, dtype=dtype).requires_grad_() for shape in shapes]


def naive(x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip):
    batch, channels, height, width = x.shape
    states, rank = a_log.shape[1], dt_weight.shape[2]
    rows = torch.arange(height * width)
    columns = rows.view(height, width).T.reshape(-1)
    total = torch.zeros_like(x).flatten(2)
    for k, order in enumerate((rows, columns, rows.flip(0), columns.flip(0))):
        rate = -a_log.view(4, channels, states)[k].exp()
        state = x.new_zeros(batch, channels, states)
        out = [None] * (height * width)
        for token in order.tolist():
            u = x.flatten(2)[:, :, token]
            r, b, c = (u @ x_proj_weight[k].T).split((rank, states, states), dim=-1)
            dt = F.softplus(r @ dt_weight[k].T + dt_bias[k])
            state = (dt[..., None] * rate).exp() * state + (dt * u)[..., None] * b[:, None]
            out[token] = (state * c[:, None]).sum(-1) + d_skip.view(4, channels)[k] * u
        total = total + torch.stack(out, dim=-1)
    return total.view_as(x)


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (9, 1), (1, 1), (4, 4), (6, 11)])
def test_equals_sequential_loop(size):
    inputs = make(size)
    actual, expected = selective_scan_2d(*inputs), naive(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad((actual * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)


def test_gradients():
    inputs = make((2, 3), batch=1, channels=2, states=2, rank=1)
    assert torch.autograd.gradcheck(selective_scan_2d, inputs)


def test_blocks_of_channels_change_nothing(monkeypatch):
    inputs = make((6, 8), channels=7)
    whole = selective_scan_2d(*inputs)
    monkeypatch.setitem(
        sys.modules["sa2depth.ops.selective_scan.torch"]._STATES_PER_BLOCK, "cpu", 2 * 48 * 2 * 3
    )
    parts = selective_scan_2d(*inputs)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(whole.square().sum(), inputs),
        torch.autograd.grad(parts.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 100, 300, 4100])
def test_recurrence_of_any_length(length, reverse):
    random = torch.Generator().manual_seed(length)
    decay = torch.rand(length, 3, generator=random, dtype=torch.float64)
    drive = torch.randn(length, 3, generator=random, dtype=torch.float64)
    expected, state = torch.empty_like(drive), torch.zeros(3, dtype=torch.float64)
    for token in reversed(range(length)) if reverse else range(length):
        state = decay[token] * state + drive[token]
        expected[token] = state
    torch.testing.assert_close(linear_recurrence(decay, drive, reverse=reverse), expected)


def test_strong_decay_neither_overflows_nor_underflows_to_nan():
    inputs = [t.detach().float() for t in make((20, 30))]
    inputs[3] = torch.full_like(inputs[3], 30.0)  # exp(-dt * rate) is zero in float32
    inputs = [t.requires_grad_() for t in inputs]
    out = selective_scan_2d(*inputs)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(t.grad.isfinite().all() for t in inputs)


def test_steps_grow_with_the_logarithm_of_the_tokens(monkeypatch):
    module = sys.modules["sa2depth.ops.selective_scan.torch"]
    calls = []
    walk = module._walk
    monkeypatch.setattr(module, "_walk", lambda *args, **kw: calls.append(1) or walk(*args, **kw))
    linear_recurrence(torch.rand(4096, 2), torch.rand(4096, 2))
    assert len(calls) == 3


def test_float32_out_under_autocast():
    inputs = [t.detach().float() for t in make((6, 8))]
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan_2d(*inputs)
    torch.testing.assert_close(out, selective_scan_2d(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_type_of_the_map(dtype):
    x, *weights = make((6, 8), dtype=torch.float32)
    out = selective_scan_2d(x.detach().to(dtype).requires_grad_(), *weights)
    assert out.dtype == dtype
    expected = naive(*(t.double() for t in (x.to(dtype), *weights)))
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_wrong_parameters_are_named():
    inputs = make((4, 4))
    with pytest.raises(ShapeError, match="5 channels"):
        selective_scan_2d(*inputs[:5], inputs[5][:-1])
