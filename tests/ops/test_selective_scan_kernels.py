"""The CUDA kernels of the selective scan, run on the CPU by an emulator: the sources of csrc/, thread by thread."""

import pytest
import torch

from sa2depth.ops.selective_scan import cuda as module
from sa2depth.ops.selective_scan.torch import run as selective_scan_torch


@pytest.fixture(autouse=True)
def emulated(emulate, monkeypatch):
    """The launches of a test, which run on the CPU, with their grids."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(module, "shared_bytes_limit", lambda device: 227 << 10)
    return emulate(module)


def make(size, batch=1, channels=64, rank=4, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    inputs = [
        draw(batch, channels, *size),
        draw(4, rank + 32, channels) * channels**-0.5,
        draw(4, channels, rank) * rank**-0.5,
        draw(4, channels) - 2,
        torch.arange(1.0, 17.0, dtype=torch.float64).log() + 0.1 * draw(4 * channels, 16),
        1 + 0.1 * draw(4 * channels),
    ]
    return [t.to(dtype).requires_grad_() for t in inputs]


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def check(inputs, tolerance=3e-6, gradient_tolerance=None):
    reference = [t.detach().double().requires_grad_() for t in inputs]
    actual, expected = module.run(*inputs), selective_scan_torch(*reference)
    assert actual.dtype == inputs[0].dtype
    assert relative(actual, expected) < tolerance
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(actual.dtype).double()
    gradients = torch.autograd.grad((actual * weight.to(actual.dtype)).sum(), inputs)
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
    expected_gradients = torch.autograd.grad((expected * weight).sum(), reference)
    errors = [relative(a, e) for a, e in zip(gradients, expected_gradients, strict=True)]
    assert max(errors) < (gradient_tolerance or tolerance), errors


def scans(launches):
    """Name and rows of the grid of the kernels that scan."""
    return [(name, grid[1]) for name, grid in launches if name not in ("to_tokens", "sum_directions")]


@pytest.mark.parametrize("size", [(9, 15), (1, 1), (1, 70), (65, 1), (8, 8)])
def test_one_segment(size, emulated, monkeypatch):
    for fills in ("_FILLS_FORWARD", "_FILLS_BACKWARD"):
        monkeypatch.setattr(module, fills, 0)
    check(make(size))
    assert scans(emulated) == [("scan_forward", 4), ("scan_backward", 4)]


def test_the_order_of_threads_between_barriers_does_not_matter(monkeypatch):
    def run():
        inputs = make((11, 19))
        output = module.run(*inputs)
        return output, *torch.autograd.grad(output.square().sum(), inputs)

    forwards = run()
    monkeypatch.setenv("CUDA_EMULATOR_BACKWARDS", "1")
    for a, b in zip(forwards, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_several_segments(emulated, monkeypatch):
    for fills in ("_FILLS_FORWARD", "_FILLS_BACKWARD"):
        monkeypatch.setattr(module, fills, 1e9)
    monkeypatch.setattr(module, "_BLOCKS_HELD", 12)
    check(make((13, 17)))
    # 221 tokens are 4 chunks, which do not make 3 equal segments: 2 of 2 chunks
    assert scans(emulated) == [
        ("segment_ends", 8),
        ("scan_forward", 8),
        ("adjoint_segment_ends", 8),
        ("scan_backward", 8),
    ]


def test_as_many_segments_as_chunks(monkeypatch):
    for fills in ("_FILLS_FORWARD", "_FILLS_BACKWARD"):
        monkeypatch.setattr(module, fills, 1e9)
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1000)
    check(make((11, 19)))


def test_ragged_channels_and_rank_and_several_images():
    check(make((5, 14), batch=2, channels=70, rank=3))


def test_small_shared_memory(monkeypatch):
    monkeypatch.setattr(module, "shared_bytes_limit", lambda device: 99 << 10)
    check(make((9, 15)))


def test_strong_and_weak_decay():
    inputs = make((8, 20))
    with torch.no_grad():
        inputs[3][:, ::3] = 25.0  # decays that are zero in float32
        inputs[3][:, 1::3] = -9.0  # and decays close to one
    check(inputs, tolerance=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_weights", [False, True])
def test_half_precision(dtype, of_weights, emulated):
    inputs = make((6, 23))
    inputs = [t.detach().to(dtype if i == 0 or of_weights else t.dtype) for i, t in enumerate(inputs)]
    tolerance = {torch.bfloat16: 6e-3, torch.float16: 8e-4}[dtype]
    check([t.requires_grad_() for t in inputs], tolerance, gradient_tolerance=2 * tolerance)


def test_half_precision_of_several_segments_and_ragged_sizes(monkeypatch):
    for fills in ("_FILLS_FORWARD", "_FILLS_BACKWARD"):
        monkeypatch.setattr(module, fills, 1e9)
    monkeypatch.setattr(module, "_BLOCKS_HELD", 24)
    inputs = make((9, 17), batch=2, channels=70, rank=3)
    inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    check(inputs, 6e-3, gradient_tolerance=1.2e-2)


def test_any_type_of_gradient():
    x, *weights = operator_arguments()
    x = x.detach().bfloat16().requires_grad_()
    y = module.selective_scan(x, *weights)[0]
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad(y, x, weight.bfloat16(), retain_graph=True)
    (turned,) = torch.autograd.grad(y, x, weight.bfloat16().mT.contiguous().mT, retain_graph=True)
    torch.testing.assert_close(turned, expected, rtol=0, atol=0)


def test_float32_stays_float32_under_autocast():
    tensors = operator_arguments()[:6]
    outside, inside = [], []
    for gradients, enabled in ((outside, False), (inside, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = module.selective_scan(*tensors, 5, True)[0]
            gradients += (y, *torch.autograd.grad(y.square().sum(), tensors))
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_no_states_are_kept_without_gradients(monkeypatch):
    inputs = [t.detach() for t in make((5, 14))]
    kept = []
    operator = module.selective_scan
    monkeypatch.setattr(module, "selective_scan", lambda *a: kept.append(a[-1]) or operator(*a))
    without = module.run(*inputs)
    inputs[4].requires_grad_()
    with torch.no_grad():
        module.run(*inputs)
    assert relative(module.run(*inputs).detach(), without.double()) == 0
    assert kept == [False, False, True]


def test_layouts(emulated):
    inputs = [t.detach() for t in make((7, 10), channels=96)]
    expected = module.run(*inputs)
    assert emulated[0] == ("to_tokens", (3, 3, 1))
    emulated.clear()
    inputs[0] = inputs[0].to(memory_format=torch.channels_last)
    torch.testing.assert_close(module.run(*inputs), expected, rtol=0, atol=0)
    assert "to_tokens" not in dict(emulated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_memory_is_taken_as_it_is(dtype, monkeypatch):
    inputs = [t.detach() for t in make((7, 10))]
    x = inputs[0].to(dtype).to(memory_format=torch.channels_last)
    taken = []
    operator = module.selective_scan
    monkeypatch.setattr(module, "selective_scan", lambda *a: taken.append(a[0]) or operator(*a))
    y = module.run(x, *inputs[1:])
    assert taken[0].data_ptr() == x.data_ptr()
    assert taken[0].dtype == y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_off_the_grid_of_vectors(dtype):
    inputs = [t.detach() for t in make((7, 10))]
    x = inputs[0].to(dtype).to(memory_format=torch.channels_last)
    memory = torch.empty(x.numel() + 2, dtype=dtype)[2:]
    shifted = memory.view(1, 7, 10, 64).permute(0, 3, 1, 2).copy_(x)
    assert shifted.data_ptr() % 16
    expected = module.run(x, *inputs[1:])
    torch.testing.assert_close(module.run(shifted, *inputs[1:]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rank", [4, 12, 24])
def test_ranks_that_fill_no_tile_of_the_tensor_cores(rank):
    check(make((5, 14), rank=rank))


def operator_arguments(keep_states=True, dtype=torch.float32):
    x, *weights = (t.detach() for t in make((5, 14)))
    tokens = x.flatten(2).transpose(1, 2).to(dtype)
    return (*(t.clone().requires_grad_() for t in (tokens, *weights)), 5, keep_states)


def test_operator_obeys_the_rules_of_torch_library():
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(module.selective_scan, operator_arguments(), atol=1e-5, rtol=1e-4)
    arguments = operator_arguments(dtype=torch.bfloat16)
    torch.library.opcheck(module.selective_scan, arguments, atol=1e-5, rtol=1e-4)
    tests = ("test_schema", "test_faketensor")  # there is no backward pass
    torch.library.opcheck(module.selective_scan, operator_arguments(keep_states=False), test_utils=tests)
    torch.library.opcheck(module.to_tokens, (torch.randn(2, 3, 4, 5, requires_grad=True),))


@pytest.mark.parametrize("keep_states", [False, True])
def test_the_operator_takes_no_image(keep_states, emulated):
    x, *arguments = operator_arguments(keep_states)
    y, *kept = module.selective_scan(x[:0], *arguments)
    assert y.shape == x[:0].shape
    assert not emulated
    if keep_states:
        assert [t.shape for t in kept] == [(0, 70, 4 * 36), (0, 2, 4, 64, 16)]
        gradients = torch.autograd.grad(y.sum(), (x, *arguments[:5]))
        assert not any(g.any() for g in gradients)


def test_second_derivatives_are_refused():
    inputs = make((5, 14))
    (gradient,) = torch.autograd.grad(module.run(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_backward_without_states_is_refused():
    y, *_ = module.selective_scan(*operator_arguments(keep_states=False))
    with pytest.raises(RuntimeError, match="keep_states=False"):
        y.sum().backward()
