"""Which sizes are replayed, on the CPU: a recorded function stands in for a CUDA graph."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from sa2depth.runtime import replayed
from sa2depth.runtime.replayed import Graphed


@pytest.fixture
def captured(monkeypatch):
    """How often something was captured."""
    seen = []

    def capture(function, device):
        seen.append(1)
        result = function()

        def replay():
            time.sleep(0)  # another thread may come between
            result.copy_(function())

        return SimpleNamespace(replay=replay), result

    monkeypatch.setattr(replayed, "capture", capture)
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return seen


def double(x):
    return 2 * x


def image(size, value=1.0):
    return torch.full((1, 3, size, size), value)


def test_a_size_that_comes_again_is_captured(captured):
    network = Graphed(double)
    for size, expected in ((4, 0), (8, 0), (4, 1), (4, 1), (8, 2), (8, 2)):
        torch.testing.assert_close(network(image(size, 3.0)), image(size, 6.0))
        assert len(captured) == expected


def test_two_calls_an_image(captured):
    network = Graphed(double, calls=2)
    for expected in (0, 0, 1, 1):
        network(image(4))
        assert len(captured) == expected


def test_results_belong_to_the_caller(captured):
    network = Graphed(double)
    results = [network(image(4, float(value))) for value in range(4)]
    assert [float(result.mean()) for result in results] == [0, 2, 4, 6]


def test_sizes_in_turn_do_not_push_each_other_out(captured):
    network = Graphed(double, most=2)
    for _ in range(5):
        for size in (4, 8, 12):
            network(image(size))
    assert len(captured) == 2


def test_a_size_that_is_not_used_any_more_makes_room(captured):
    network = Graphed(double, most=1)
    for _ in range(3):
        network(image(4))
    for _ in range(40):
        network(image(8))
    assert len(captured) == 2
    assert list(network._graphs) == [(1, 3, 8, 8)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("not possible\nmore"), "not possible"),
        (torch.OutOfMemoryError("2 GiB"), "the GPU's memory does not suffice"),
    ],
)
def test_what_cannot_be_captured_is_called(error, reason, captured, monkeypatch, caplog):
    network = Graphed(double)
    for _ in range(2):
        network(image(4))
    working = replayed.capture

    def fails(function, device):
        raise error

    monkeypatch.setattr(replayed, "capture", fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for _ in range(4):
        torch.testing.assert_close(network(image(8)), image(8, 2.0))
    assert [r.message for r in caplog.records] == [f"images of 8 x 8 run without a CUDA graph: {reason}"]
    assert bool(network._graphs) is not isinstance(error, torch.OutOfMemoryError)
    monkeypatch.setattr(replayed, "capture", working)
    torch.testing.assert_close(network(image(4)), image(4, 2.0))


def test_threads_get_their_own_pictures(captured):
    network, start = Graphed(double), threading.Barrier(4)

    def work(number):
        start.wait()
        return all(float(network(image(4, number)).mean()) == 2 * number for _ in range(500))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, (1.0, 2.0, 3.0, 4.0)))
