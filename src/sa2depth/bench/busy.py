"""The CPU's speed while other programs hold some of its cores, by how OpenMP's threads wait and how many there are.

A process reads how threads wait once, when it loads OpenMP: every figure comes from a process of its own, in turns with
and without the other programs. ``python -m sa2depth.bench.busy`` is such a process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sa2depth import threads
from sa2depth.bench.networks import inference, network, training
from sa2depth.errors import ConfigError
from sa2depth.lit import FreeCores

WAITING: dict[str, dict[str, str]] = {
    "as OpenMP comes": {"GOMP_SPINCOUNT": "300000"},  # what GNU's takes by itself; LLVM's ignores it
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
    "sa2depth": threads.waiting(len(threads.cpus())),
}
"""Environment variables by name of the policy; the last is what every program of this package sets."""

FREE = "free"
WHAT = ("training", "inference")
_LOOK_S = 1.0
_WARM_UP_S = 2.5  # two looks at the load


@dataclass(frozen=True)
class Setting:
    """What one process measures.

    Attributes:
        model: a key of `sa2depth.bench.networks.MODELS`.
        what: ``training`` (a step) or ``inference``.
        size: height and width, px.
        batch: images.
        threads: a number, or ``free``: chosen by the load, as in a training.
        seconds: how long to measure.
    """

    model: str
    what: str
    size: tuple[int, int]
    batch: int
    threads: str
    seconds: float


@dataclass(frozen=True)
class Figure:
    """Medians over the rounds, images per second.

    Attributes:
        model: as in `Setting`, and so are ``what`` and ``threads``.
        waiting: a key of `WAITING`.
        quiet: nothing else runs that this benchmark has started.
        busy: beside the programs that hold cores.
    """

    model: str
    what: str
    waiting: str
    threads: str
    quiet: float
    busy: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def thread_numbers(text: str, busy: int) -> list[str]:
    """Numbers of threads by name: ``all`` usable cores, the ``rest`` that the others leave, ``free``, or a number.

    Args:
        text: names and numbers with commas between.
        busy: cores that others hold.

    Raises:
        ConfigError: something else, or a number below 1.
    """
    cores = threads.usable_cores()
    names = {"all": str(cores), "rest": str(max(1, cores - busy)), FREE: FREE}
    numbers = []
    for word in (word.strip() for word in text.split(",")):
        if word not in names and not (word.isdigit() and int(word)):
            raise ConfigError(f"--threads {text}: any of all, rest, free, or numbers from 1 on, not '{word}'")
        numbers.append(names.get(word, word))
    return list(dict.fromkeys(numbers))


def compare(settings: Sequence[Setting], busy: int, rounds: int) -> Iterator[Figure]:
    """Measure each setting under each policy, in turns quiet and busy.

    Raises:
        ConfigError: a measuring process failed; with what it said.
    """
    for setting in settings:
        for name, variables in WAITING.items():
            rates: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(rounds):
                for others in rates:
                    with spinning(busy if others else 0):
                        rates[others].append(_measured(setting, variables))
            quiet, loaded = (statistics.median(rates[others]) for others in (False, True))
            yield Figure(setting.model, setting.what, name, setting.threads, quiet, loaded)


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """A context in which other processes keep cores busy, on whichever the system puts them."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _measured(setting: Setting, variables: dict[str, str]) -> float:
    ours = {*threads.waiting(1), threads.NUMBER}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    command = [sys.executable, "-m", "sa2depth.bench.busy", json.dumps(asdict(setting))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [*done.stderr.strip().splitlines(), f"status {done.returncode}"][-2:][0]
        raise ConfigError(f"{setting.model}, {setting.what}, {setting.threads} threads: {last}")
    return float(json.loads(done.stdout)["images_per_s"])


def rate(call: Callable[[], object], setting: Setting) -> float:
    """Images per second of a call, in this process."""
    chosen = FreeCores(_LOOK_S)
    if setting.threads == FREE:
        threads.settle("cpu")
        chosen.follow()
    else:
        torch.set_num_threads(int(setting.threads))
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < _WARM_UP_S:
        call()
        chosen.look()
        calls += 1
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < setting.seconds:
        call()
        chosen.look()
        calls += 1
    return setting.batch * calls / (time.perf_counter() - began)


def main() -> None:
    """Measure the setting of the command line (JSON) and print the images per second."""
    given = json.loads(sys.argv[1])
    setting = Setting(**{**given, "size": tuple(given["size"])})
    model = network(setting.model, torch.device("cpu"))
    make = training if setting.what == "training" else inference
    step = make(model, torch.rand(setting.batch, 3, *setting.size), "fp32")
    print(json.dumps({"images_per_s": rate(step.run, setting)}))  # noqa: T201


if __name__ == "__main__":
    main()
