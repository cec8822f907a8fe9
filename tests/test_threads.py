"""The waiting policy of threads, and the number of usable cores by affinity, quotas, processes, other programs."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sa2depth import threads

ENTRY_POINTS = {
    "train": ("-m", "sa2depth.train", "experiment=demo"),
    "eval": ("-m", "sa2depth.eval", "checkpoint=none"),
    "demo": ("-m", "sa2depth.demo"),
    "command": ("-m", "sa2depth", "doctor", "--no-test"),
    # what the console script `sa2depth` runs
    "script": (
        "-c",
        "import sys; from sa2depth.cli import main; sys.argv[1:] = ['doctor']; sys.exit(main())",
    ),
    "bench": ("-m", "sa2depth.bench.busy", "{}"),
    "library": ("-c", "import sa2depth; sa2depth.load_model('none')"),
}

# Ends a program at the moment at which it first imports PyTorch, with the variables that OpenMP would read.
AT_TORCH = """
import json, os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
            found = {name: os.environ[name] for name in names if name in os.environ}
            os.write(1, json.dumps(found).encode())
            os._exit(7)

sys.meta_path.insert(0, Finder())
"""


def seen_by_openmp(entry, tmp_path, **own):
    (tmp_path / "sitecustomize.py").write_text(AT_TORCH)
    environment = {name: value for name, value in os.environ.items() if name not in threads._BY_HAND}
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *ENTRY_POINTS[entry]],
        env={**environment, **own, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_the_policy_is_set_before_anything_loads_openmp(entry, tmp_path):
    assert seen_by_openmp(entry, tmp_path) == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": str(min(5000 * len(threads.cpus()), 300_000)),
        "KMP_BLOCKTIME": "1",
    }


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_LIBRARY": "turnaround"}], ids=str
)
def test_what_the_user_has_set_stays(own, tmp_path):
    assert seen_by_openmp("train", tmp_path, **own) == own


@pytest.fixture
def affinity(monkeypatch):
    """A function that sets the number of processors of this process."""

    def give(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)

    return give


def machine(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/pod/box\n"}
V1 = {"proc/self/cgroup": "4:memory:/m\n2:cpu,cpuacct:/docker/abc\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        (V2, 16),
        ({**V2, "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n"}, 16),
        ({**V2, "sys/fs/cgroup/pod/box/cpu.max": "400000 100000\n"}, 4),
        # a group above this one is narrower
        ({**V2, "sys/fs/cgroup/pod/box/cpu.max": "400000 100000", "sys/fs/cgroup/pod/cpu.max": "200000 100000"}, 2),
        # inside a container the mount's root is the container's own group
        ({**V2, "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cpu.max": "600000 100000\n"}, 6),
        ({**V2, "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({**V2, "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({**V2, "sys/fs/cgroup/cpu.max": "nonsense"}, 16),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "50000",
            },
            5,
        ),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 16),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_quota(files, cores, affinity, tmp_path):
    affinity(16)
    assert threads.usable_cores(root=machine(tmp_path, files)) == cores


def test_processes_share_the_cores(affinity, tmp_path):
    affinity(6)
    assert [threads.usable_cores(count, tmp_path) for count in (1, 2, 4, 9)] == [6, 3, 1, 1]
    box = machine(tmp_path, {**V2, "sys/fs/cgroup/cpu.max": "400000 100000"})
    assert threads.usable_cores(2, box) == 2


def test_without_affinity_all_cores_count(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert threads.usable_cores(root=tmp_path) == 10


@pytest.mark.parametrize(
    ("others", "free"),
    [(None, 4), (0.0, 4), (0.3, 4), (0.5, 3), (1.0, 3), (1.3, 3), (2.0, 2), (3.9, 1), (9.0, 1)],
)
def test_a_core_that_others_hold_is_not_free(others, free, affinity, tmp_path):
    affinity(4)
    assert threads.free_cores(others, root=tmp_path) == free


def test_with_a_quota_the_free_cores_are_those_of_the_whole_machine(affinity, tmp_path):
    affinity(16)
    box = machine(tmp_path, {**V2, "sys/fs/cgroup/cpu.max": "400000 100000"})
    assert [threads.free_cores(others, root=box) for others in (8.0, 12.0, 14.0)] == [4, 4, 2]


class Clock:
    """A fake of the module `time` and of the kernel's counters."""

    def __init__(self, root):
        self.root, self.now, self.own, self.ticks = root, 0.0, 0.0, [0, 0, 0]
        self.tell()

    def monotonic(self):
        return self.now

    def process_time(self):
        return self.own

    def tell(self):
        lines = ["cpu  9 9 9 9 9 9 9 9 0 0"]
        lines += [f"cpu{n} {t} 0 {t} 77 5 0 0 {t} 0 0" for n, t in enumerate(self.ticks)]
        machine(self.root, {"proc/stat": "\n".join([*lines, "intr 1 2 3"])})


def test_the_meter_counts_what_others_use_on_our_cores(affinity, monkeypatch, tmp_path):
    affinity(2)
    clock = Clock(tmp_path)
    monkeypatch.setattr(threads, "time", clock)
    meter = threads.Meter(tmp_path)
    hertz = os.sysconf("SC_CLK_TCK")
    # in 4 s processor 0 is busy for 3 s and processor 1 for 1.5 s; processor 2 is not ours
    clock.now, clock.own = 4.0, 2.0
    clock.ticks = [hertz, hertz // 2, 50 * hertz]
    clock.tell()
    assert meter.waited() == 4.0
    assert meter.others() == pytest.approx((3 + 1.5 - 2) / 4)
    clock.now += 0.1
    assert meter.others() is None, "too short to tell"
    clock.now += 4.0
    assert meter.others() == 0.0
    (tmp_path / "proc/stat").unlink()
    clock.now += 4.0
    assert meter.others() is None


@pytest.fixture
def four_threads(monkeypatch):
    """PyTorch with the state that it has at the start on a machine with four cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "_most", 0)
    monkeypatch.setattr(threads, "_chosen", 0)
    monkeypatch.setattr(threads, "_FIXED", False)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
class TestNumber:
    def test_never_above_what_pytorch_had(self):
        assert [threads.use_threads(count) for count in (9, 2, 0, 3, 9)] == [4, 2, 1, 3, 4]
        torch.set_num_threads(2)  # the user, in between
        assert [threads.use_threads(count) for count in (9, 1, 9)] == [2, 1, 2]
        assert torch.get_num_threads() == 2

    @pytest.mark.parametrize(
        ("device", "processes", "others", "expected"),
        [
            ("cpu", 1, 0.0, 4),
            ("cpu", 1, 1.0, 3),
            ("cpu", 2, 3.0, 2),  # the share, whatever the load is
            ("cuda", 1, 0.0, 2),
            ("cuda", 4, 0.0, 1),
        ],
    )
    def test_at_the_start(self, device, processes, others, expected, affinity, monkeypatch):
        affinity(4)
        monkeypatch.setattr(threads, "FEW", 2)
        monkeypatch.setattr(threads, "_START", SimpleNamespace(others=lambda: others))
        assert threads.settle(device, processes) == expected == torch.get_num_threads()

    def test_the_users_number_stays(self, monkeypatch):
        monkeypatch.setattr(threads, "_FIXED", True)
        assert threads.settle("cuda", 4) == 4 == torch.get_num_threads()

    def test_few_threads_for_small_work(self):
        import cv2

        before = cv2.getNumThreads()
        cv2.setNumThreads(3)
        try:
            with threads.few_threads(2):
                assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
                with threads.few_threads(3):
                    assert torch.get_num_threads() == 2
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (4, 3)
        finally:
            cv2.setNumThreads(before)


def test_the_users_number_is_known_from_the_start():
    program = "from sa2depth import threads; print(threads.fixed_by_user())"
    environment = {name: value for name, value in os.environ.items() if name != threads.NUMBER}
    for own, fixed in (({}, "False"), ({threads.NUMBER: "3"}, "True")):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment | own, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == fixed


FORKED = """
import os, sys, torch, sa2depth
model = sa2depth.create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0).eval()
image = torch.rand(1, 3, 64, 96)
with torch.no_grad():
    torch.set_num_threads(4)
    depth = model(image).depth
    assert torch.rand(3000, 300).mm(torch.rand(300, 3000)).isfinite().all()
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        assert torch.get_num_threads() == 1
        torch.rand(3000, 300).exp().sum()
        print(float((model(image).depth - depth).abs().median()) < 1e-4, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_process_that_is_forked_after_a_prediction_computes():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["True"]), done.stderr


@pytest.mark.parametrize(("cores", "turns"), [(1, 5_000), (2, 10_000), (32, 160_000), (128, 300_000)])
def test_more_threads_spin_for_longer_before_they_sleep(cores, turns):
    assert threads.waiting(cores)["GOMP_SPINCOUNT"] == str(turns)
