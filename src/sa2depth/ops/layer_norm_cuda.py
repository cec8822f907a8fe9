"""Layer normalisation on CUDA: a ``torch.library`` operator around ``csrc/layer_norm``.

Nothing is summed with atomics: two runs give the same bits on one kind of GPU. Backward takes two launches: the input's
gradient with sums of the parameters' gradients by blocks, and the sum of those.
"""

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import refuse_second_derivative
from sa2depth.ops.backends import say_once
from sa2depth.ops.kernels import Source, launch, why_unavailable

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/layer_norm/layer_norm.cuh
_CHANNELS = 8  # their number is a multiple
_VECTOR_BYTES = 16

# Threads of a team and the numbers of each, as in csrc/layer_norm/layer_norm.cuh: the room of each is their product.
_TEAMS = (
    *((4, 8), (8, 8), (4, 24), (16, 8), (8, 24), (32, 8)),
    *((16, 24), (32, 16), (32, 24), (32, 32), (64, 32), (256, 32)),
)
_BLOCK_THREADS = 128  # or those of a team
# Blocks of a multiprocessor, by numbers of a thread, without and with GELU: as in csrc/layer_norm/backward.cu.
_RESIDENT = ({8: 5, 16: 4, 24: 3, 32: 2}, {8: 4, 16: 4, 24: 2, 32: 2})
_FORWARD_VALUES = 32  # of a thread, in all the rows that it takes at once
_MOST_CHANNELS = max(lanes * values for lanes, values in _TEAMS)
_SUM_OUTPUTS, _SUM_THREADS = 32, 1024  # of a block of layer_norm_sum_parts

_MOST_ROWS = 2**31 - 2**24  # rows are counted in 32 bits, with those that the blocks of a grid are ahead
_EMULATED_MULTIPROCESSORS = 3  # where there is no GPU to ask


def why_not(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Why the kernels cannot take these inputs; empty if they can."""
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if not tensor.is_cuda:
            return f"the {name} is on {tensor.device}"
        if tensor.dtype not in _TYPES:
            return f"the {name} is {tensor.dtype}"
    channels = x.shape[-1]
    if not channels or channels % _CHANNELS or channels > _MOST_CHANNELS:
        return f"there are {channels} channels, not a multiple of {_CHANNELS} up to {_MOST_CHANNELS}"
    if x.numel() // channels > _MOST_ROWS:
        return f"the input has shape {tuple(x.shape)}"
    return _why_unavailable(x.device.index)


@torch.compiler.assume_constant_result
def _why_unavailable(index: int) -> str:
    reason = why_unavailable(torch.device("cuda", index))
    if reason:
        say_once("layer_norm", reason)
    return reason


def layer_norm_cuda(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    """``ops.layer_norm`` for inputs that ``why_not`` has nothing against."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if dtype.itemsize > x.dtype.itemsize:  # which the kernels do not write
        x = x.to(dtype)
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad)
    # The dispatcher takes longer than the kernel of a small input: not through it where it has nothing to do.
    direct = not keep and not torch.compiler.is_compiling() and type(x) is Tensor and not _watched()
    return (_normalise if direct else layer_norm)(x, weight.float(), bias.float(), eps, gelu, dtype, keep)[0]


def _watched() -> bool:
    """Whether something sees operators only as the dispatcher gets them: a trace, a mode, a transform of functions."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    """The result in ``dtype``, and mean and 1 / deviation of each row (``(..., 2)`` float32) for the backward pass.

    Weight and bias are float32. Without ``keep`` nothing is kept for the backward pass and there is no gradient.
    """
    output = x.new_empty(x.shape, dtype=dtype)
    statistics = x.new_empty((*x.shape[:-1], 2) if keep else 0, dtype=torch.float32)
    if not output.numel():
        return output, statistics
    channels = x.shape[-1]
    rows = x.numel() // channels
    x, stride = _rows(x)
    lanes, values = _team(channels)
    threads = max(_BLOCK_THREADS, lanes)
    launch(
        _source("forward", x.dtype, dtype, gelu),
        f"layer_norm_forward_{lanes}x{values}",
        (
            *(x, _ready(weight), _ready(bias), output, statistics if keep else None),
            *(ctypes.c_int64(stride), ctypes.c_int32(rows), ctypes.c_int32(channels)),
            *(ctypes.c_float(1 / channels), ctypes.c_float(eps)),
        ),
        grid=(math.ceil(rows / (threads // lanes * (_FORWARD_VALUES // values))), 1, 1),
        threads=threads,
        device=x.device,
    )
    return output, statistics


layer_norm = torch.library.custom_op("sa2depth::layer_norm_cuda", _normalise, mutates_args=())


@torch.library.custom_op("sa2depth::layer_norm_cuda_backward", mutates_args=())
def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    gelu: bool,
    wants_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias, the last two empty where not wanted; ``grad`` is that of the output."""
    grad_x = x.new_empty(x.shape)
    channels = x.shape[-1]
    grad_weight, grad_bias = (weight.new_empty(channels if wants_parameters else 0) for _ in range(2))
    if not x.numel():
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    rows = x.numel() // channels
    grad, grad_stride = _rows(grad)
    x, stride = _rows(x)
    lanes, values = _team(channels)
    threads = max(_BLOCK_THREADS, lanes)
    blocks = _blocks(rows, lanes, values, gelu, x.device)
    parts = weight.new_empty((blocks, 2, channels)) if wants_parameters else None
    launch(
        _source("backward", x.dtype, grad.dtype, gelu),
        f"layer_norm_backward_{lanes}x{values}",
        (
            *(grad, x, _ready(weight), _ready(bias), _ready(statistics), grad_x, parts),
            *(ctypes.c_int64(grad_stride), ctypes.c_int64(stride)),
            *(ctypes.c_int32(rows), ctypes.c_int32(channels), ctypes.c_float(1 / channels)),
        ),
        grid=(blocks, 1, 1),
        threads=threads,
        device=x.device,
    )
    if wants_parameters:
        launch(
            _source("backward", x.dtype, grad.dtype, gelu),
            "layer_norm_sum_parts",
            (parts, grad_weight, grad_bias, ctypes.c_int32(blocks), ctypes.c_int32(channels)),
            grid=(math.ceil(2 * channels / _SUM_OUTPUTS), 1, 1),
            threads=_SUM_THREADS,
            device=x.device,
        )
    return grad_x, grad_weight, grad_bias


@functools.cache
def _team(channels: int) -> tuple[int, int]:
    """Threads of the smallest team that has room for a row, and the numbers of each."""
    return min((team for team in _TEAMS if math.prod(team) >= channels), key=math.prod)


def _blocks(rows: int, lanes: int, values: int, gelu: bool, device: torch.device) -> int:
    """Blocks that walk the rows backwards: as many as run at once, or fewer if all take the same number of steps."""
    step = max(_BLOCK_THREADS, lanes) // lanes * (2 if values == 8 else 1)
    sets = math.ceil(rows / step)
    resident = 1 if lanes > _BLOCK_THREADS else _RESIDENT[gelu][values]
    return math.ceil(sets / math.ceil(sets / (resident * _multiprocessors(device))))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _EMULATED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _source(name: str, input: torch.dtype, output: torch.dtype, gelu: bool) -> Source:
    macros = (("INPUT_TYPE", _TYPES[input]), ("OUTPUT_TYPE", _TYPES[output]), ("GELU", int(gelu)))
    return Source(f"layer_norm/{name}.cu", macros)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """Memory that starts with the first row, and the numbers from there to the next row; a copy if it must be."""
    stride = x.shape[-1] if x.is_contiguous() else _row_stride(x)
    vector = _VECTOR_BYTES // x.element_size()
    if stride < x.shape[-1] or stride % vector or x.data_ptr() % _VECTOR_BYTES:
        return _ready(x), x.shape[-1]
    if (
        stride > x.shape[-1]
    ):  # the launcher takes what is contiguous: everything from the first number to the last
        x = x.as_strided(((x.numel() // x.shape[-1] - 1) * stride + x.shape[-1],), (1,))
    return x, stride


def _row_stride(x: Tensor) -> int:
    """Numbers from each row to the next; 0 if rows are not contiguous or not evenly spaced."""
    if x.stride(-1) != 1:
        return 0
    stride = following = None
    for size, step in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = step  # 0 where one row stands for many: they are copied
        elif step != following:
            return 0
        following = step * size
    return x.shape[-1] if stride is None else stride


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned to the kernels' widest loads."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _VECTOR_BYTES == 0 else tensor.clone()


def _like_output(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    statistics = x.new_empty((*x.shape[:-1], 2) if keep else 0, dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), statistics


def _like_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    gelu: bool,
    wants_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[-1] if wants_parameters else 0
    return x.new_empty(x.shape), weight.new_empty(channels), weight.new_empty(channels)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, ctx.gelu, _, ctx.kept = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _grad_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.kept:
        raise RuntimeError("layer_norm (cuda) ran with keep=False: it has no backward pass")
    if grad is None:
        return (None,) * 7
    wanted = ctx.needs_input_grad[:3]
    gradients = layer_norm_backward(grad, *ctx.saved_tensors, ctx.gelu, wanted[1] or wanted[2])
    return (*(g if wants else None for g, wants in zip(gradients, wanted, strict=True)), *(None,) * 4)


layer_norm.register_fake(_like_output)
layer_norm_backward.register_fake(_like_gradients)
layer_norm.register_autograd(_gradients, setup_context=_save)
layer_norm_backward.register_autograd(refuse_second_derivative("layer_norm", "cuda"))
