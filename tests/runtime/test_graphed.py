"""Replayed passes in autograd, on the CPU: recorded functions replace the CUDA graphs."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from sa2depth.models.sa2depth import DepthOutput
from sa2depth.runtime import capture, graphed
from sa2depth.runtime.graphed import GraphedTraining, Passes, replay


class Recorded:
    """Repeats a recorded function in place, as a graph does: from fixed inputs to fixed results."""

    def __init__(self, function):
        self.replay, self.there = function, True

    def reset(self):
        self.there = False


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def passes_of(network, unused):
    image = torch.zeros(5, 3, dtype=torch.float64)
    weights = (*network.parameters(), unused)
    outputs = (torch.zeros(5, 2, dtype=torch.float64), torch.zeros(1))
    gradients = (*(torch.zeros_like(weight) for weight in network.parameters()), None)
    place = torch.zeros_like(outputs[0])

    def forward():
        with torch.no_grad():
            outputs[0].copy_(network(image))
            outputs[1].fill_(7)

    def backward():
        with torch.enable_grad():
            found = torch.autograd.grad(network(image), weights[:-1], place)
        for kept, gradient in zip(gradients, found, strict=False):
            kept.copy_(gradient)

    return Passes(Recorded(forward), Recorded(backward), image, outputs, (place, None), weights, gradients)


def test_gradients_reach_the_weights(network):
    unused = nn.Parameter(torch.zeros(1))
    passes = passes_of(network, unused)
    for step in range(3):
        image = torch.rand(5, 3, dtype=torch.float64)
        target = (network(image) - step).square().sum()
        expected = torch.autograd.grad(target, tuple(network.parameters()))
        network.zero_grad(set_to_none=True)
        first, second = replay(passes, image)
        (first - step).square().sum().backward()
        torch.testing.assert_close(first, network(image))
        assert second.item() == 7
        for weight, gradient in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(weight.grad, gradient)
        assert unused.grad is None


def test_second_derivatives_are_refused(network):
    unused = nn.Parameter(torch.zeros(1))
    first, _ = replay(passes_of(network, unused), torch.rand(5, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(first.square().sum(), network[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_gradients_of_the_step_before_are_refused(network):
    unused = nn.Parameter(torch.zeros(1))
    passes = passes_of(network, unused)
    replay(passes, torch.rand(5, 3, dtype=torch.float64))[0].sum().backward()
    with pytest.raises(RuntimeError, match="set them to None before backward"):
        replay(passes, torch.rand(5, 3, dtype=torch.float64))[0].sum().backward()
    network.zero_grad(set_to_none=True)
    replay(passes, torch.rand(5, 3, dtype=torch.float64))[0].sum().backward()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, image):
        depth = self.norm(self.conv(image))
        return DepthOutput(depth, depth.mean((2, 3)))


@pytest.fixture
def captures(monkeypatch):
    """The captured batches; on the CPU the passes then call the network."""
    seen = []

    def capture(model, image, dtype):
        seen.append(image)
        model(image)
        if image.shape[-1] == 5:
            raise RuntimeError("cannot be captured\nmore")
        return model

    monkeypatch.setattr(graphed, "_capture", capture)
    monkeypatch.setattr(graphed, "replay", lambda passes, image: passes(image)[:2])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    return seen


def test_it_is_captured_once_and_for_one_kind_of_batch(captures):
    model = Net().train()
    training = GraphedTraining(model)
    for size in (4, 4, 8, 4):
        training(torch.rand(2, 3, size, size))
    assert [image.shape[-1] for image in captures] == [4]
    assert model.norm.num_batches_tracked == 4  # the capture does not count


def test_released_graphs_are_captured_again(captures, network):
    training = GraphedTraining(Net().train())
    training.release()  # does nothing yet
    training(torch.rand(2, 3, 4, 4))
    training._passes = passes = passes_of(network, nn.Parameter(torch.zeros(1)))
    training.release()
    assert not passes.forward.there
    assert not passes.backward.there
    training(torch.rand(2, 3, 8, 8))
    assert [image.shape[-1] for image in captures] == [4, 8]


def test_graphs_are_forgotten_at_exit(monkeypatch):
    class Failed(Recorded):
        def reset(self):
            super().reset()
            raise RuntimeError("the device has failed")

    graphs = [Failed(None), Recorded(None)]
    monkeypatch.setattr(capture, "_graphs", weakref.WeakSet(graphs))
    capture._forget()
    assert not any(graph.there for graph in graphs)


def test_frozen_weights_run_without_graphs(captures, monkeypatch):
    training = GraphedTraining(model := Net().train())
    training(torch.rand(2, 3, 4, 4))
    model.conv.requires_grad_(False)
    monkeypatch.setattr(graphed, "replay", None)
    assert not training(torch.rand(2, 3, 4, 4)).depth.isnan().any()


@pytest.mark.parametrize("required", [False, True])
def test_a_network_that_cannot_be_captured(required, captures, caplog):
    training = GraphedTraining(model := Net().train(), required)
    image = torch.rand(2, 3, 5, 5)
    if required:
        with pytest.raises(RuntimeError, match="cannot be captured"):
            training(image)
        return
    for _ in range(2):
        training(image)
    assert [record.message for record in caplog.records] == [
        "training runs without CUDA graphs: cannot be captured"
    ]
    assert len(captures) == 1
    assert model.norm.num_batches_tracked == 2


def _one_of_two(rank, store):
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    answers = [graphed._agreed(well, torch.device("cpu")) for well in (True, rank == 0, False)]
    torch.distributed.destroy_process_group()
    assert answers == [True, False, False]


def test_processes_agree(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # so that the processes find this module
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path / "store"),), nprocs=2)
    assert graphed._agreed(True, torch.device("cpu"))
    assert not graphed._agreed(False, torch.device("cpu"))
