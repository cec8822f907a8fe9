"""Any number of processes scores every image exactly once and gives the same numbers to the last digit."""

import json
import math
import subprocess
import sys

import pytest
import torch

from sa2depth.metrics import METRICS, DepthMetrics, Protocol
from views import uncut

RULES = {
    "name": "ranges",
    "version": 1,
    "min_depth": 1e-3,
    "max_depth": 10.0,
    "metrics": ("abs_rel", "irmse", *(name for name in METRICS if name != "abs_rel")),
    "depth_ranges": (0.0, 0.5, 2.0, 10.0, 20.0),
}
pytestmark = [pytest.mark.xdist_group("metrics_of_processes"), pytest.mark.slow]  # which are started once

SIZES = (5, 7, 654)

# Every process of the group of three; two of them form the group of two afterwards.
WORKER = """
import json, sys, torch, torch.distributed as dist
from sa2depth.data.loading.samplers import EvaluationSampler
from sa2depth.metrics import DepthMetrics, Protocol, view_of

torch.set_num_threads(1)
rank, folder, rules, sizes = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
pred, depth = torch.load(f"{folder}/maps.pt")
results = {}


def seen(batch):
    index = torch.as_tensor(batch)
    names = [f"image {i}" for i in index.tolist()]
    return view_of({"image": depth[index], "depth": depth[index], "index": index, "id": names}, Protocol(**rules))


for world in (3, 2):
    if rank >= world:
        continue
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    metric = DepthMetrics(Protocol(**rules))
    shares = {str(size): list(EvaluationSampler(size)) for size in sizes}
    shares["all on the last"] = list(range(5)) if rank == world - 1 else []
    for case, share in shares.items():
        for batch in torch.tensor(share, dtype=torch.long).split(8):
            if len(batch):
                metric.update(pred[batch], seen(batch))
        results[f"{world} processes, {case}"] = [
            metric.compute(), metric.table(), metric.evaluation().by_depth, sum(len(rows) for rows in metric.rows)
        ]
        metric.reset()
    if rank == 0:  # image 0 once more, on another process
        metric.update(pred[:1], seen([0]))
    else:
        metric.update(pred[rank - 1 : rank], seen([rank - 1]))
    refusals = []
    for ask in (metric.compute, metric.table, metric.evaluation):
        try:
            ask()
        except Exception as error:
            refusals.append(f"{type(error).__name__}: {error}")
    results[f"{world} processes, twice"] = refusals
    dist.destroy_process_group()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(results, file)
"""


@pytest.fixture(scope="module")
def maps():
    rng = torch.Generator().manual_seed(0)
    depth = torch.rand(max(SIZES), 1, 6, 7, generator=rng) * 11  # some beyond the limit
    pred = depth * torch.exp(0.3 * torch.randn(depth.shape, generator=rng))
    depth[3] = 0  # an image without a scored pixel
    pred[4, 0, 0, :2] = math.nan
    return pred, depth


@pytest.fixture(scope="module")
def answers(maps, tmp_path_factory):
    """The results of each process in groups of two and of three."""
    folder = tmp_path_factory.mktemp("group")
    torch.save(maps, folder / "maps.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(folder), json.dumps(RULES), json.dumps(SIZES)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def alone(maps, count):
    pred, depth = (values[:count] for values in maps)
    metric = DepthMetrics(Protocol(**RULES))
    metric.update(pred, uncut(depth, ids=[f"image {i}" for i in range(count)]))
    return metric.compute(), metric.table(), metric.evaluation().by_depth


def same(found, expected):
    """Compare numbers to 1e-9, with NaN equal to itself."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return found == expected or abs(found - expected) <= 1e-9 or (found != found and expected != expected)
    return found == expected


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", [*map(str, SIZES), "all on the last"])
def test_the_table_is_that_of_one_process(maps, answers, world, case):
    count = int(case) if case.isdigit() else 5
    expected = alone(maps, count)
    assert len(expected[1]) == count
    assert expected[0]["images"] == count - 1
    assert sum(row["pixels"] for row in expected[2]) == sum(row["pixels"] for row in expected[1])
    for rank in range(world):
        means, table, ranges, own = answers[rank][f"{world} processes, {case}"]
        assert same([means, table, ranges], expected)
        # each keeps its own rows afterwards
        assert own == (
            len(range(rank, count, world)) if case.isdigit() else count if rank == world - 1 else 0
        )


@pytest.mark.parametrize("world", [2, 3])
def test_an_image_on_two_processes_is_refused_by_all(answers, world):
    for rank in range(world):
        refusals = answers[rank][f"{world} processes, twice"]
        assert len(refusals) == 3
        for text in refusals:
            assert text.startswith("DataError: 1 images were scored more than once (indices 0)")


def test_one_process_in_any_order_and_batches(maps):
    pred, depth = maps
    for count in SIZES:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
        metric = DepthMetrics(Protocol(**RULES))
        for batch in order.split(3):
            metric.update(pred[batch], uncut(depth[batch], batch, [f"image {i}" for i in batch.tolist()]))
        assert same([metric.compute(), metric.table(), metric.evaluation().by_depth], alone(maps, count))
