"""Replayed passes in autograd, on the CPU: recorded functions stand in for the graphs."""

import pytest
import torch
from torch import nn

from sa2depth.models.graphed import Passes, replay


class Recorded:
    """Does what was recorded, as a graph does: from where its inputs lie to where its results lie."""

    def __init__(self, function):
        self.replay = function


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
