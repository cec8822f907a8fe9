"""Training replayed from CUDA graphs follows the same path as training without."""

import copy
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from sa2depth import create_model
from sa2depth.infer import Predictor
from sa2depth.losses import SILog
from sa2depth.models import PRESETS, build_model
from sa2depth.nn.sync_batch_norm import synchronize_batch_norms
from sa2depth.runtime.checkpointing import checkpoint_layers
from sa2depth.runtime.compiled import compile_layers
from sa2depth.runtime.graphed import GraphedTraining
from sa2depth.runtime.replayed import capture

pytestmark = pytest.mark.gpu


def batches(count, size=64):
    torch.manual_seed(3)
    for _ in range(count):
        image = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4, device="cuda"), size, mode="bilinear")
        yield image, 1 + 4 * image.mean(1, keepdim=True)


def train(model, call, dtype, steps=6):
    torch.manual_seed(5)
    optimizer, loss, losses = torch.optim.AdamW(model.parameters(), 1e-3), SILog(), []
    for image, depth in batches(steps):
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            value = loss(call(image).depth, depth, depth > 0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_losses_and_statistics_are_the_same(dtype):
    torch.manual_seed(0)
    eager = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
    model = copy.deepcopy(eager)
    graphed = GraphedTraining(model, required=True)
    expected, actual = train(eager, eager, dtype), train(model, graphed, dtype)
    assert actual == pytest.approx(expected, rel=2e-2 if dtype else 1e-3)
    assert actual[-1] < actual[0]
    for (name, reference), value in zip(eager.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(value, reference, rtol=0.05, atol=0.05, msg=name)
        if "num_batches" in name:
            assert value == 6


VARIANTS = {
    "window attention": {"attention": {"_target_": "sa2depth.nn.WindowAttention", "_partial_": True}},
    "plain MLP": {"feed_forward": {"_target_": "sa2depth.nn.Mlp", "_partial_": True}},
    "no modulator": {
        "attention": {
            "_target_": "sa2depth.nn.FlexibleAttention",
            "_partial_": True,
            "modulator": None,
            "ranks": [[0, 0.5], [0.5, 1]],
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("compile", [False, True])
def test_parts_that_are_not_the_papers_are_captured_too(variant, compile):
    spec = {**PRESETS["sa2depth_nano"], "min_depth": 0.1, "max_depth": 10}
    spec["decoder"] |= VARIANTS[variant]
    torch.manual_seed(0)
    eager = build_model(spec).cuda().train()
    model = copy.deepcopy(eager)
    if compile:
        compile_layers(model)
    expected = train(eager, eager, torch.bfloat16)
    assert train(model, GraphedTraining(model, required=True), torch.bfloat16) == pytest.approx(
        expected, rel=2e-2
    )


def test_drop_path_draws_anew_at_each_replay():
    torch.manual_seed(0)
    model = create_model("sa2depth_t", min_depth=0.1, max_depth=10).cuda().train()
    for layer in model.encoder.stages[2].blocks:
        layer.drop_path.rate.fill_(0.5)
    graphed, (image, _) = GraphedTraining(model, required=True), next(batches(1, 96))
    outputs = [graphed(image).depth.detach().clone() for _ in range(3)]
    assert not torch.equal(outputs[1], outputs[2])


def test_another_shape_runs_without_graphs():
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
    graphed = GraphedTraining(model, required=True)
    for size in (64, 96, 64):
        (image, _) = next(batches(1, size))
        depth = graphed(image).depth
        assert depth.shape[-1] == size
        model.zero_grad()
        depth.sum().backward()


class Copies(torch.nn.Module):
    """Looks at its input on the CPU, which no graph can hold."""

    min_depth, max_depth = 0.1, 10.0

    def __init__(self):
        super().__init__()
        self.model = create_model("sa2depth_nano", min_depth=self.min_depth, max_depth=self.max_depth)

    def forward(self, image):
        self.model.encoder(image)  # so that there is memory to give back
        image.mean().item()
        return self.model(image)

    def predict_bins(self, image):
        image.mean().item()
        return self.model.predict_bins(image)


def test_what_cannot_be_captured_runs_all_the_same(caplog):
    model = Copies().cuda().train()
    (image, _) = next(batches(1))
    graphed = GraphedTraining(model)
    for _ in range(2):
        assert torch.isfinite(graphed(image).depth).all()
    assert "training runs without CUDA graphs" in caplog.text
    with pytest.raises(RuntimeError):
        GraphedTraining(model, required=True)(image)


def reserved_bytes():
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # each stream that multiplies has its own
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_a_failed_capture_leaves_the_device_as_it_was():
    model = Copies().cuda().train()
    (image, _) = next(batches(1, 256))
    model(image)  # kernels are compiled
    torch.manual_seed(1)
    expected = [torch.rand(3, device="cuda") for _ in range(2)]
    torch.manual_seed(1)
    first = torch.rand(3, device="cuda")
    reserved, stream = reserved_bytes(), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        GraphedTraining(model, required=True)(image)
    assert torch.cuda.current_stream() == stream
    torch.testing.assert_close([first, torch.rand(3, device="cuda")], expected, rtol=0, atol=0)
    assert reserved_bytes() <= reserved + 2**21
    # and another network can be captured
    other = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
    GraphedTraining(other, required=True)(image).depth.sum().backward()


def test_other_threads_use_the_device_during_a_capture():
    stop = threading.Event()

    def load():
        stream = torch.cuda.Stream()
        while not stop.is_set():
            pinned = torch.empty(int(torch.randint(1 << 20, 1 << 22, ())), pin_memory=True)
            with torch.cuda.stream(stream):
                event = torch.cuda.Event()
                pinned.to("cuda", non_blocking=True)
                event.record()
                event.query()
            stream.synchronize()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
        (image, _) = next(batches(1))
        depth = GraphedTraining(model, required=True)(image).depth
        depth.sum().backward()
        assert all(torch.isfinite(w.grad).all() for w in model.parameters() if w.grad is not None)
    finally:
        stop.set()
        thread.join()


def test_a_predictor_of_what_cannot_be_captured(caplog):
    predictor = Predictor(Copies(), device="cuda")
    image = torch.rand(3, 64, 96)
    first, second = predictor(image), predictor(image)
    assert caplog.text.count("images of 64 x 96 run without a CUDA graph") == 1
    expected = Predictor(Copies().model, device="cuda", graph=False)
    assert first.depth.shape == expected(image).depth.shape
    assert (first.depth == second.depth).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_that_run_again_drop_the_same_paths(precision):
    torch.manual_seed(0)
    plain = create_model("sa2depth_t", min_depth=0.1, max_depth=10).cuda().train()
    for layer in plain.encoder.stages[2].blocks:
        layer.drop_path.rate.fill_(0.5)
    model = copy.deepcopy(plain)
    checkpoint_layers(model, ("encoder", "decoder"))
    graphed, again = GraphedTraining(model, required=True), copy.deepcopy(model)
    (image, _) = next(batches(1, 96))
    gradients = []
    for call, network in ((graphed, model), (again, again)):
        torch.manual_seed(5)
        for _ in range(2):  # the second step draws other numbers
            network.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                depth = call(image).depth
            depth.sum().backward()
        gradients.append([w.grad.clone() for w in network.encoder.parameters() if w.grad is not None])
    for actual, expected in zip(*gradients, strict=True):
        error = (actual - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < (1e-2 if precision == "fp32" else 0.2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_captures_on_two_devices_of_one_process():
    values = [torch.zeros(3, device=f"cuda:{index}") for index in range(2)]
    for index in (0, 1, 0):
        graph, result = capture(lambda value=values[index]: value + 1, torch.device("cuda", index))
        values[index].fill_(41)
        graph.replay()
        torch.cuda.synchronize(index)
        assert result.tolist() == [42, 42, 42]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_from_graphs_as_without(tmp_path, monkeypatch):  # and with a compiled layer in them
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # for the processes
    torch.multiprocessing.spawn(_train_on_two, (str(tmp_path / "store"),), nprocs=2)


def _train_on_two(rank, store):
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", f"file://{store}", rank=rank, world_size=2)
    losses = []
    for graph, compiled in ((False, False), (True, False), (True, True)):
        torch.manual_seed(0)
        model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10).cuda().train()
        synchronize_batch_norms(model)
        if compiled:
            compile_layers(model.decoder.blocks[-1])  # one with batch norms
        step = Step(model, graph)
        with torch.cuda.stream(torch.cuda.Stream()):  # as Lightning does
            network = DistributedDataParallel(step, device_ids=[rank], broadcast_buffers=False)
        losses.append(train(network, lambda image, network=network: network(image * (1 - 0.3 * rank)), None))
        means = [float(weight.detach().mean()) for weight in model.parameters()]
        both = [None, None]
        torch.distributed.all_gather_object(both, means)
        assert both[0] == both[1], "the devices' weights differ"
        step.release()
    for captured in losses[1:]:
        assert captured == pytest.approx(losses[0], rel=1e-3)
    assert losses[1][-1] < losses[1][0]
    torch.distributed.destroy_process_group()


class Step(torch.nn.Module):
    """What DistributedDataParallel wraps in a training: more than the network."""

    def __init__(self, model, graph):
        super().__init__()
        self.model = model
        self._call = GraphedTraining(model, required=True) if graph else model

    def forward(self, image):
        return self._call(image)

    def release(self):
        if isinstance(self._call, GraphedTraining):
            self._call.release()


# As Lightning does: what ends the process group waits for graphs that hold collectives.
FAILING = """
import atexit, sys, torch, torch.distributed as dist
from sa2depth.runtime.capture import captured, memory_pool

rank = int(sys.argv[1])
torch.cuda.set_device(rank)
dist.init_process_group("nccl", f"file://{sys.argv[2]}", rank=rank, world_size=2)
atexit.register(dist.destroy_process_group)

def train():
    value = torch.ones(3, device="cuda")
    dist.all_reduce(value)
    with memory_pool(value.device) as pool:
        graph, _ = captured(lambda: dist.all_reduce(value), pool)
    graph.replay()
    torch.cuda.synchronize()
    assert value.tolist() == [4, 4, 4]
    raise ArithmeticError(graph)  # held by the error

train()
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_failed_training_ends(tmp_path):
    command = [sys.executable, "-c", FAILING]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        try:
            said = process.communicate(timeout=100)[1]
        finally:
            process.kill()
        assert "ArithmeticError" in said
        assert process.returncode == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_compiled_batch_norms_share_their_statistics(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # for the processes
    torch.multiprocessing.spawn(_norms_of_two, (str(tmp_path / "store"),), nprocs=2)


def _norms_of_two(rank, store):
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    plain.to("cuda", torch.float64)
    synchronize_batch_norms(plain)
    whole = copy.deepcopy(plain)
    whole.compile(fullgraph=True, dynamic=False)
    torch.manual_seed(rank)
    image = torch.randn(2 + rank, 3, 32, 32, device="cuda", dtype=torch.float64)
    results = []
    for model in (plain, whole):
        model(image).square().sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(*results)
    torch.distributed.destroy_process_group()
