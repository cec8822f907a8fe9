"""A callback that keeps the number of threads at the number of cores that other programs leave free."""

from typing import Any

import lightning as L
import torch

from sa2depth import threads


class FreeCores(L.Callback):
    """Chooses PyTorch's number of threads when a stage begins, and follows the load of the machine while it runs.

    On the CPU a parallel loop is as slow as its slowest thread: one thread on a core that a browser uses makes all
    others wait. Such a core is left out until it is free again. If another device runs the network, a few threads do
    the CPU's work.

    If the user has set ``OMP_NUM_THREADS``, nothing is changed. The number from the start is kept with several
    processes, which cannot tell each other from other programs, and with ``trainer.deterministic=true``, because
    another number of threads rounds sums differently.

    Args:
        every_s: seconds between two measurements of the load.
    """

    def __init__(self, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self._meter: threads.Meter | None = None
        self._growing = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the number for this stage."""
        strategy: Any = trainer.strategy
        processes = int(getattr(strategy, "num_processes", 1))
        device = strategy.root_device.type
        threads.settle(device, processes)
        fixed = threads.fixed_by_user() or torch.are_deterministic_algorithms_enabled()
        self._meter = None
        if not fixed and processes == 1 and device == "cpu":
            self.follow()

    def follow(self) -> None:
        """Follow the load from now on, at each call of `look`."""
        self._meter = threads.Meter()

    def look(self) -> None:
        """Set the number of threads that the load allows, if ``every_s`` seconds have passed."""
        if self._meter is None or self._meter.waited() < self.every_s:
            return
        wanted = threads.free_cores(self._meter.others())
        # use fewer threads at once, but more only after a second look: the other program may only have paused
        grows = wanted > torch.get_num_threads()
        if not grows or self._growing:
            threads.use_threads(wanted)
        self._growing = grows

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Follow the load."""
        self.look()

    on_validation_batch_start = on_test_batch_start = on_train_batch_start
