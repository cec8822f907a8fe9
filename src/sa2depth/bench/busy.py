"""The CPU's speed while other programs use some of its cores, by OpenMP's waiting policy and number of threads.

OpenMP reads its waiting policy once, when it is loaded. So every figure comes from a process of its own, in turns with
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
    "as OpenMP comes": {"GOMP_SPINCOUNT": "300000"},  # the default of GNU's runtime; LLVM's ignores it
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
    "sa2depth": threads.waiting(len(threads.cpus())),
}
"""Environment variables by name of the policy; every program of this package sets the last one."""

FREE = "free"
WHAT = ("training", "inference")
_LOOK_S = 1.0
_WARM_UP_S = 2.5  # two looks at the load


@dataclass(frozen=True)
class Setting:
    """The measurement of one process.

    Attributes:
        model: a key of `sa2depth.bench.networks.MODELS`.
        what: ``training`` (a step) or ``inference``.
        size: height and width, px.
        batch: images.
        threads: a number, or ``free`` to follow the load as a training does.
        seconds: length of the measurement.
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
        model: as in `Setting`, like ``what`` and ``threads``.
        waiting: a key of `WAITING`.
        quiet: speed without other programs of this benchmark.
        busy: speed beside programs that keep cores busy.
    """

    model: str
    what: str
    waiting: str
    threads: str
    quiet: float
    busy: float

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as a dict for JSON."""
        return asdict(self)


def thread_numbers(text: str, busy: int) -> list[str]:
    """Numbers of threads by name: ``all`` usable cores, the ``rest`` that the others leave, ``free``, or a number.

    Args:
        text: names and numbers, separated by commas.
        busy: number of cores that others keep busy.

    Raises:
        ConfigError: a name is unknown, or a number is below 1.
    """
    cores = threads.usable_cores()
    names = {"all": str(cores), "rest": str(max(1, cores - busy)), FREE: FREE}
    numbers = []
    for word in (word.strip() for word in text.split(",")):
        if word not in names and not (word.isdigit() and int(word)):
            raise ConfigError(f"--threads {text}: give all, rest, free or numbers from 1 on, not '{word}'")
        numbers.append(names.get(word, word))
    return list(dict.fromkeys(numbers))


def compare(settings: Sequence[Setting], busy: int, rounds: int) -> Iterator[Figure]:
    """Measure each setting under each policy, quiet and busy in turns.

    Raises:
        ConfigError: a measuring process failed; the message repeats its error.
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
    """A context in which other processes keep cores busy; the system chooses which."""
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
