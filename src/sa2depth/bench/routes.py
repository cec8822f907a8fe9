"""The ways to run one trained network: back ends, forms, precisions, batches, threads, code paths."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sa2depth.bench.networks import autocast, prepared
from sa2depth.ops import cpu, use_backend
from sa2depth.ops.precision import float32_products
from sa2depth.runtime.compiled import why_not_compiled
from sa2depth.runtime.replayed import Graphed
from sa2depth.weights import load_model

Depths = npt.NDArray[np.float64]
BATCH = 8
"""Batch size of the routes that take several images at once."""
_TIMEOUT_S = 3600.0
_TAIL = 300  # characters of a failed process's output that are shown


@dataclass(frozen=True)
class Route:
    """A way to run a network.

    Attributes:
        name: name in tables.
        backend: argument of `sa2depth.ops.use_backend`.
        precision: ``fp64``, ``fp32``, ``tf32`` (products of float32 on CUDA), ``bf16`` or ``fp16`` (autocast).
        prepared: whether it has the form for inference (`sa2depth.runtime.inference.for_inference`).
        compile: whether ``torch.compile`` fuses layers; such a route is prepared, too.
        graph: whether it is replayed from CUDA graphs.
        batch: images per call.
        threads: number of PyTorch's threads; None does not change it.
        device: device of the route, if it is not the measured one.
        exact_convolutions: whether cuDNN's float32 convolutions run in float32, and not in TF32 as PyTorch has them.
        environment: variables that are read when PyTorch loads, so the route runs in a process of its own.
        why_not: the reason if this machine cannot run the route; else empty.
    """

    name: str
    backend: str = "auto"
    precision: str = "fp32"
    prepared: bool = False
    compile: bool = False
    graph: bool = False
    batch: int = 1
    threads: int | None = None
    device: str = ""
    exact_convolutions: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    why_not: str = ""


REFERENCE = Route("float64, torch path", "torch", "fp64")


def routes(device: torch.device) -> list[Route]:
    """The routes to compare with `REFERENCE` on a device."""
    return _on_cuda(device) if device.type == "cuda" else _on_cpu()


def _on_cpu() -> list[Route]:
    library = cpu.why_unavailable()
    other = 1 if torch.get_num_threads() > 1 else 2
    capability = torch.backends.cpu.get_cpu_capability()
    found = [
        Route("float32, torch path", "torch"),
        Route("float32, CPU library", why_not=library),
        Route("float32, prepared (norms folded)", prepared=True),
        Route(f"float32, prepared, batches of {BATCH}", prepared=True, batch=BATCH),
        Route(f"float32, prepared, {other} thread{'s' * (other > 1)}", prepared=True, threads=other),
    ]
    for name, value in (("ATEN_CPU_CAPABILITY", "avx2"), ("ATEN_CPU_CAPABILITY", "default")):
        lacking = "" if capability in ("AVX2", "AVX512") else f"PyTorch has {capability} here"
        found.append(_with(lacking, **{name: value}))
    found.append(_with("", ONEDNN_MAX_CPU_ISA="AVX2"))
    for path in ("avx2", "portable"):
        lacking = library or ("" if path in cpu.paths() else f"no {path} here")
        found.append(_with(lacking, SA2DEPTH_CPU_PATH=path))
    found.append(Route("bf16, prepared", precision="bf16", prepared=True))
    return found


def _with(why_not: str, **environment: str) -> Route:
    assigned = " ".join(f"{name}={value}" for name, value in environment.items())
    return Route(f"float32, prepared, {assigned}", prepared=True, environment=environment, why_not=why_not)


def _on_cuda(device: torch.device) -> list[Route]:
    compiled: dict[str, Any] = {"compile": True, "prepared": True, "why_not": why_not_compiled(device)}
    graph: dict[str, Any] = {"graph": True, "prepared": True}
    return [
        Route("float32, torch path", "torch"),
        Route("float32, kernels", exact_convolutions=True),
        Route("float32, kernels, convolutions in TF32 (default)"),
        Route("float32, prepared (norms folded)", prepared=True),
        Route(f"float32, prepared, batches of {BATCH}", prepared=True, batch=BATCH),
        Route("float32, prepared, graph", **graph),
        Route("float32, prepared, compiled", **compiled),
        Route("TF32, prepared, graph", precision="tf32", **graph),
        Route("bf16, kernels", precision="bf16"),
        Route("bf16, prepared, graph", precision="bf16", **graph),
        Route(f"bf16, prepared, graph, batches of {BATCH}", precision="bf16", batch=BATCH, **graph),
        Route("bf16, prepared, compiled", precision="bf16", **compiled),
        Route("fp16, prepared, graph", precision="fp16", **graph),
        Route("float32, prepared, on the CPU", prepared=True, device="cpu"),
    ]


def depths(route: Route, checkpoint: str, images: Tensor, device: torch.device) -> Depths:
    """Depth of each image on one route.

    Args:
        route: the route.
        checkpoint: argument of `sa2depth.weights.load_model`.
        images: ``(N, 3, H, W)`` float32 in [0, 1], with sides that the network can take.
        device: device of the network, unless the route has another.

    Returns:
        ``(N, H, W)`` metres.

    Raises:
        RuntimeError: the route cannot be run; the message says why.
        ConfigError: a back end cannot take these images.
    """
    if route.environment:
        return _in_a_process(route, checkpoint, images, device)
    device = torch.device(route.device or device)
    with _settings(route):
        network = _network(route, checkpoint, device)
        batches = [network(batch.to(device)).double().cpu() for batch in torch.split(images, route.batch)]
    return torch.cat(batches)[:, 0].numpy()


def _network(route: Route, checkpoint: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    model: Any = load_model(checkpoint).eval().to(device)
    if route.precision == "fp64":
        model = model.double()
    if route.prepared:
        model = prepared(model, route.precision, compile=route.compile)

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, route.precision):
            return model(batch.double() if route.precision == "fp64" else batch).depth

    return Graphed(run, calls=0) if route.graph else run


@contextmanager
def _settings(route: Route) -> Iterator[None]:
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_num_threads(route.threads or threads)
        torch.backends.cudnn.allow_tf32 = tf32 and not route.exact_convolutions
        with use_backend(route.backend), float32_products("high" if route.precision == "tf32" else "highest"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32


def _in_a_process(route: Route, checkpoint: str, images: Tensor, device: torch.device) -> Depths:
    with tempfile.TemporaryDirectory(prefix="sa2depth_bench_") as folder:
        job = {**asdict(route), "environment": {}}
        np.save(Path(folder, "images.npy"), images.numpy())
        done = subprocess.run(
            [sys.executable, "-m", "sa2depth.bench.routes", json.dumps(job), checkpoint, str(device), folder],
            env={**os.environ, "SA2DEPTH_BENCH_THREADS": str(torch.get_num_threads()), **route.environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            raise RuntimeError(
                f"its process ended with status {done.returncode}: {done.stderr[-_TAIL:].strip()}"
            )
        return np.load(Path(folder, "depths.npy"))


def _main(job: str, checkpoint: str, device: str, folder: str) -> None:
    torch.set_num_threads(int(os.environ["SA2DEPTH_BENCH_THREADS"]))
    images = torch.from_numpy(np.load(Path(folder, "images.npy")))
    found = depths(Route(**json.loads(job)), checkpoint, images, torch.device(device))
    np.save(Path(folder, "depths.npy"), found)


if __name__ == "__main__":
    _main(*sys.argv[1:])
