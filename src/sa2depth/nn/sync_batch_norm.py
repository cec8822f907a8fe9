"""Batch norm with the statistics of all processes that train together."""

from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701

from sa2depth.errors import ConfigError
from sa2depth.ops.autograd import refuse_second_derivative

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` that can be compiled, runs on a CPU, too, and keeps timm's activation behind a norm.

    On CUDA it is PyTorch's own. While ``torch.compile`` traces, and on other devices, the same is written out, so that
    it fuses with its surroundings; only what joins the processes' statistics is an operator of its own.

    Args:
        norm: that it takes the place of. Weights and statistics are shared, not copied, and keep their names.

    Raises:
        ConfigError: if this kind of norm does more than is known here, or belongs to a part of the processes.
    """

    # No subclass of PyTorch's, which DistributedDataParallel refuses on a CPU; its forward pass asks for these.
    process_group = None
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def __init__(self, norm: _BatchNorm) -> None:
        if type(norm) not in (*_PLAIN, BatchNormAct2d):
            raise ConfigError(
                f"a {type(norm).__name__} cannot share its statistics between processes; "
                "set trainer.sync_batchnorm=false"
            )
        if getattr(norm, "process_group", None) is not None:
            raise ConfigError("a batch norm over a part of the processes is not supported")
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False, device="meta"
        )
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.training = norm.training
        _share(norm, self)
        self._replaced = (norm,)  # in a tuple it is no child of this module

    def plain_norm(self) -> bool:
        """Whether no activation and no dropout follows; see `sa2depth.nn.traits`."""
        return isinstance(self.act, nn.Identity) and isinstance(self.drop, nn.Identity)

    def restored(self) -> _BatchNorm:
        """The norm that stood in this place, with the present weights and statistics."""
        (norm,) = self._replaced
        _share(self, norm)
        norm.train(self.training)
        return norm

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, ...)`` normalised by mean and variance of each channel over all images of all processes."""
        alone = not self.training or not dist.is_initialized() or dist.get_world_size() == 1
        if alone:
            output = super().forward(input)
        elif input.is_cuda and not torch.compiler.is_compiling():
            output = nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        else:
            output = self._written_out(input)
        result: Tensor = self.act(self.drop(output))
        return result

    def _written_out(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        others = [0, *range(2, x.ndim)]
        shape = (1, -1, *(1 for _ in others[1:]))
        count = x.numel() // x.shape[1]
        mean = x.sum(others) / max(count, 1)
        squares = (x - mean.view(shape)).square().sum(others)
        # squares around the own mean and not around zero: nothing cancels
        own = torch.stack([mean, squares, torch.full_like(mean, count)])
        means, all_squares, counts = all_gather(own).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        squares = (all_squares + counts * (means - mean).square()).sum(0)
        self._track(mean.detach(), (squares / (total - 1)).detach())
        output = (x - mean.view(shape)) * torch.rsqrt(squares / total + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        numbers, running_mean, running_var = (
            cast(Tensor, value) for value in (self.num_batches_tracked, self.running_mean, self.running_var)
        )
        numbers.add_(1)
        with torch.no_grad():
            share = 1 / numbers.to(mean.dtype) if self.momentum is None else self.momentum
            for running, new in ((running_mean, mean), (running_var, variance)):
                running.add_(share * (new.to(running.dtype) - running))


def synchronize_batch_norms(model: nn.Module) -> None:
    """Put a `SyncBatchNorm` in the place of each batch norm of a model.

    PyTorch's own conversion takes the activations out of timm's networks, which are a part of their norms.

    Raises:
        ConfigError: if the model has a norm that this cannot be done with.
    """
    _exchange(model, lambda norm: None if isinstance(norm, SyncBatchNorm) else SyncBatchNorm(norm))


def restore_batch_norms(model: nn.Module) -> None:
    """Undo `synchronize_batch_norms`; what was learned meanwhile stays."""
    _exchange(model, lambda norm: norm.restored() if isinstance(norm, SyncBatchNorm) else None)


def _exchange(model: nn.Module, other: Any) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and (new := other(child)) is not None:
                setattr(parent, name, new)


def _share(source: nn.Module, target: nn.Module) -> None:
    # the tensors themselves: a module's move to a device replaces its buffers
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(target, name, getattr(source, name))


@torch.library.custom_op("sa2depth::all_gather", mutates_args=())
def all_gather(values: Tensor) -> Tensor:
    """``(...)`` of each process to ``(P, ...)`` of all, the same on each; its gradient is the sum over processes."""
    gathered = values.new_empty(dist.get_world_size(), *values.shape)
    dist.all_gather_into_tensor(gathered.view(-1), values.reshape(-1))
    return gathered


@torch.library.custom_op("sa2depth::all_gather_backward", mutates_args=())
def all_gather_backward(gradient: Tensor) -> Tensor:
    """``(P, ...)`` of each process, summed over processes; ``(...)`` of the own one."""
    total = gradient.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total[dist.get_rank()].clone()


@all_gather.register_fake
def _like_gathered(values: Tensor) -> Tensor:
    return values.new_empty(dist.get_world_size(), *values.shape)


@all_gather_backward.register_fake
def _like_own(gradient: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape[1:])


all_gather.register_autograd(lambda ctx, gradient: all_gather_backward(gradient))
all_gather_backward.register_autograd(refuse_second_derivative("all_gather", "torch", torch_has=False))
