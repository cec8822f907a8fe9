"""The number of threads follows the cores that other programs leave free."""

from types import SimpleNamespace

import pytest
import torch

from sa2depth import threads
from sa2depth.lit import FreeCores


def trainer(device="cpu", **strategy):
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device), **strategy))


class Meter:
    """A meter whose load the test sets."""

    def __init__(self, *loads):
        self.loads, self.seconds = list(loads), 10.0

    def waited(self):
        return self.seconds

    def others(self):
        return self.loads.pop(0)


@pytest.fixture
def start(monkeypatch):
    """``start(trainer, *loads)``: the callback after set-up on four cores, with the loads that it will measure."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(threads, "_quota", lambda root: None)
    monkeypatch.setattr(threads, "_FIXED", False)
    monkeypatch.setattr(threads, "_most", 0)
    monkeypatch.setattr(threads, "_chosen", 0)
    monkeypatch.setattr(threads, "_START", Meter(0.0, 0.0))

    def start(built, *loads):
        meter = Meter(*loads)
        monkeypatch.setattr(threads, "Meter", lambda: meter)
        callback = FreeCores(every_s=5.0)
        callback.setup(built, None, "fit")
        callback.meter = meter
        return callback

    yield start
    torch.set_num_threads(before)


def looked(callback, times):
    numbers = []
    for _ in range(times):
        callback.on_train_batch_start(None, None, None, 0)
        numbers.append(torch.get_num_threads())
    return numbers


def test_fewer_at_once_and_more_when_it_lasts(start):
    callback = start(trainer(), 1.0, 0.0, 1.0, 0.0, 0.0, 2.0, None, None)
    assert torch.get_num_threads() == 4
    assert looked(callback, 8) == [3, 3, 3, 3, 4, 2, 2, 4]


def test_it_looks_now_and_then(start):
    callback = start(trainer(), 3.0, 0.0)
    callback.meter.seconds = 4.9
    assert looked(callback, 3) == [4, 4, 4]
    callback.meter.seconds = 5.0
    callback.on_validation_batch_start(None, None, None, 0)
    assert torch.get_num_threads() == 1
    callback.on_test_batch_start(None, None, None, 0)
    assert callback.meter.loads == []


def test_processes_get_their_share_and_keep_it(start):
    callback = start(trainer(num_processes=2), 3.0)
    assert looked(callback, 1) == [2]
    assert callback.meter.loads == [3.0]


def test_beside_a_gpu_few_do(start, monkeypatch):
    monkeypatch.setattr(threads, "FEW", 2)
    callback = start(trainer("cuda"), 3.0)
    assert looked(callback, 1) == [2]


def test_the_users_number_stays(start, monkeypatch):
    monkeypatch.setattr(threads, "_FIXED", True)
    assert looked(start(trainer(), 3.0), 1) == [4]


def test_a_deterministic_training_keeps_its_number(start):
    torch.use_deterministic_algorithms(True)
    try:
        assert looked(start(trainer(), 3.0), 1) == [4]
    finally:
        torch.use_deterministic_algorithms(False)
