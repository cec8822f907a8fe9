"""Batch norms over two processes match one batch norm that sees the images of both."""

import copy
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sa2depth.errors import ConfigError
from sa2depth.lit import SyncBatchNorms
from sa2depth.nn.sync_batch_norm import (
    SyncBatchNorm,
    all_gather,
    restore_batch_norms,
    synchronize_batch_norms,
)

pytestmark = [pytest.mark.xdist_group("sync_batch_norm"), pytest.mark.slow]  # the processes are started once

SHARES = (slice(0, 2), slice(2, 5))  # five images, split unequally between two processes


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.PReLU), nn.Conv2d(8, 6, 3)),
        *(nn.BatchNorm2d(6, momentum=None), nn.Flatten(2), nn.BatchNorm1d(6, affine=False, eps=1e-3)),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model.double()


def images(step):
    torch.manual_seed(step)
    return 100 + torch.randn(5, 3, 9, 7, dtype=torch.double)  # a mean far above the spread


def train(model, forward, share=slice(None)):
    """Outputs and gradients of three steps, the last one with frozen statistics, and the final statistics."""
    results = []
    for step in range(3):
        if step == 2:
            model.eval()
        x = images(step)[share].requires_grad_()
        output = forward(x)
        weighting = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(9)).double()
        model.zero_grad()
        (output.square() * weighting).sum().backward()
        results.append((output.detach(), x.grad, {n: p.grad.clone() for n, p in model.named_parameters()}))
    return results, dict(model.named_buffers())


def _one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for way in ("eager", "compiled"):
        model = network()
        synchronize_batch_norms(model)
        if way == "compiled":
            model.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        torch.save(train(model, model, SHARES[rank]), f"{folder}/{way}{rank}.pt")
    torch.save(_refusal(), f"{folder}/refused{rank}.pt")
    _lightnings_way(rank, folder)
    torch.distributed.destroy_process_group()


def _refusal():
    x = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(all_gather(x).square().sum(), x, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes, started once for all tests, have written, by name and process."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])  # for the processes
        torch.multiprocessing.spawn(_one_of_two, (str(folder),), nprocs=2)
    names = ("eager", "compiled", "refused", "in_ddp")
    return {
        name: [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name in names
    }


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_two_processes_see_one_batch(two, way):
    whole = network()
    expected, statistics = train(whole, whole)
    (first, first_statistics), (second, second_statistics) = two[way]
    for (output, gradient, weights), one, other in zip(expected, first, second, strict=True):
        for index, value in enumerate((output, gradient)):
            torch.testing.assert_close(torch.cat([one[index], other[index]]), value)
        for name, value in weights.items():
            torch.testing.assert_close(one[2][name] + other[2][name], value, msg=name)
    for name, value in statistics.items():
        for own in (first_statistics, second_statistics):
            torch.testing.assert_close(own[name], value, msg=name)


def test_second_derivatives_are_refused(two):
    assert all("no second derivative" in message for message in two["refused"])


def test_alone_it_is_the_norm_it_replaces():
    model = network()
    other = copy.deepcopy(model)
    synchronize_batch_norms(other)
    assert sum(isinstance(module, SyncBatchNorm) for module in other.modules()) == 3
    (results, statistics), (expected, reference) = train(other, other), train(model, model)
    for actual, value in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=0, atol=0)
    torch.testing.assert_close(statistics, reference, rtol=0, atol=0)


def test_names_and_weights_stay_and_what_was_learned_comes_back():
    model = network()
    kinds, names = [type(m) for m in model.modules()], list(model.state_dict())
    weights = list(model.parameters())
    plugin = SyncBatchNorms()
    assert plugin.apply(model) is model
    assert plugin.apply(model) is model  # applying it twice changes nothing
    assert list(model.state_dict()) == names
    assert all(own is weight for own, weight in zip(model.parameters(), weights, strict=True))
    model.to(torch.float32)  # creates new buffers, as moving to a device does
    model(images(0).float())
    learned = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    assert plugin.revert(model) is model
    assert [type(m) for m in model.modules()] == kinds
    assert not any(module.training for module in model.modules())
    assert list(model.state_dict()) == names
    for name, value in model.state_dict().items():
        assert torch.equal(value, learned[name]), name
    assert learned["1.num_batches_tracked"] == 1


def test_unknown_norms_are_refused():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match=r"Odd .* trainer\.sync_batchnorm=false"):
        synchronize_batch_norms(nn.Sequential(Odd(3)))
    part = nn.SyncBatchNorm(3)
    part.process_group = object()
    with pytest.raises(ConfigError, match="subset of the processes"):
        synchronize_batch_norms(nn.Sequential(part))
    plain = nn.Sequential(nn.BatchNorm2d(3))
    restore_batch_norms(plain)
    assert type(plain[0]) is nn.BatchNorm2d


def _lightnings_way(rank, folder):
    """Gradients, own statistics and those of a copy, after a step inside `DistributedDataParallel`."""
    model = network()
    synchronize_batch_norms(model)
    copied = copy.deepcopy(model)  # as weight averaging does
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    wrapped(images(0)[SHARES[rank]]).square().sum().backward()
    copied(images(0)[SHARES[rank]])
    gradients = [p.grad for p in model.parameters()]
    torch.save((gradients, model.state_dict(), copied.state_dict()), f"{folder}/in_ddp{rank}.pt")
    # before the group ends: its destructor waits for a thread of the group, which waits for the GIL
    del wrapped


def test_inside_distributed_data_parallel(two):
    (gradients, statistics, copied), (other_gradients, *_) = two["in_ddp"]
    for name, value in statistics.items():
        assert torch.equal(copied[name], value), name
    for gradient, other in zip(gradients, other_gradients, strict=True):
        assert torch.equal(gradient, other)
