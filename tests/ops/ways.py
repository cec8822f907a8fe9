"""The ways to run an operator: each back end of the registry where it runs, and the GPU kernels on a CPU.

`cuda` also runs *emulated* (csrc/ compiled by g++, see emulator/), `triton` also *interpreted* (by Triton itself), and
`mamba_ssm` through a *stand-in* for the package.
"""

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from sa2depth.ops import use_backend
from sa2depth.ops.registry import OPERATORS, Backend
from sa2depth.ops.runtime import cpp
from sa2depth.ops.runtime.cpp import library
from sa2depth.resources import csrc_dir

EMULATOR = Path(__file__).parent / "emulator"
BACKENDS = {  # of each way
    "cpu": "cpu",
    "emulated": "cuda",
    "interpreted": "triton",
    "cuda": "cuda",
    "triton": "triton",
    "stand-in": "mamba_ssm",
}
GPU = ("cuda", "triton")


@dataclass
class Way:
    """One way to run one operator; a test runs inside its context.

    Attributes:
        kind: one of `BACKENDS`.
        operator: its name in the registry.
        path: code path of the CPU library, and with how many threads.
        module: of the back end.
        launches: of kernels, but for `cuda`: the name, and emulated the source and the grid.
    """

    kind: str
    operator: str
    path: tuple[str, int] | None = None
    launches: list = field(default_factory=list)

    @property
    def backend(self) -> str:
        return BACKENDS[self.kind]

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if self.kind in GPU else torch.device("cpu")

    @property
    def module(self) -> ModuleType:
        return sys.modules[backend_of(self).run.__module__]

    def rounding(self, dtype: torch.dtype) -> float:
        """Largest error of one number of a type; Triton's interpreter cuts bfloat16 off."""
        cut = 2 if self.kind == "interpreted" else 1
        return {torch.float32: 0.0, torch.bfloat16: cut * 2**-8, torch.float16: 2**-11}[dtype]

    def kernels(self) -> list[str]:
        """Names of the launches, as far as they tell kernels apart."""
        names = (name.removeprefix(f"{self.operator}_") for name, _, _ in self.launches)
        return [re.sub(r"_\d+x\d+$", "", name) for name in names]

    def __str__(self) -> str:
        return "-".join(map(str, (self.kind, *(self.path or ()))))


def ways(operator: str, every_path: bool) -> list[Way]:
    """All ways to run an operator; on the CPU with every code path or as it comes."""
    found: list[Way] = []
    offered = {backend.name for backend in OPERATORS[operator].backends}
    for kind, backend in BACKENDS.items():
        if backend not in offered:
            continue
        if kind == "cpu" and cpp.why_unavailable():
            continue  # test_cpu_library.py fails where it should be there
        if backend == "triton" and importlib.util.find_spec("triton") is None:
            continue
        if kind == "interpreted" and torch.cuda.is_available():
            continue  # compiled there: a process has one of the two
        paths = [None]
        if kind == "cpu" and every_path:  # how threads divide the work has nothing to do with the path
            paths = [*((path, 1) for path in cpp.paths()), (cpp.paths()[-1], 2)]
        found += [Way(kind, operator, path) for path in paths]
    return found


@contextmanager
def running(way: Way, monkeypatch: pytest.MonkeyPatch, build: Callable) -> Iterator[None]:
    """The public functions run this way."""
    threads = torch.get_num_threads()
    if way.path:
        monkeypatch.setenv(library.PATH_VARIABLE, way.path[0])
        torch.set_num_threads(way.path[1])
    if way.kind != "cuda":
        poison(monkeypatch)
    if way.kind == "emulated":
        emulate(way, monkeypatch, build)
    if way.kind == "interpreted":
        interpret(monkeypatch)
    if way.backend == "triton":
        note_launches(way, monkeypatch)
    if way.kind == "stand-in":
        stand_in(monkeypatch)
    if way.kind in ("emulated", "stand-in"):
        replace_in_registry(monkeypatch, backend_of(way), why_not=lambda *a: "")
    try:
        with use_backend(way.backend):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@contextmanager
def noted_calls() -> Iterator[list]:
    """Each custom operator that is called, with its arguments, which ask for gradients if it has them, and result."""
    calls: list = []
    definition = torch.library.CustomOpDef
    original = definition.__call__

    def call(self, *arguments, **keywords):
        result = original(self, *arguments, **keywords)
        if not torch.is_grad_enabled():  # as in a backward pass, which gets the leaves
            arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        calls.append((self, arguments, result))
        return result

    definition.__call__ = call
    try:
        yield calls
    finally:
        definition.__call__ = original


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody wrote shows up as NaN."""

    def poisoned(make):
        return lambda *a, **k: t.fill_(torch.nan) if (t := make(*a, **k)).is_floating_point() else t

    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


# ---- the CUDA kernels on a CPU


def builder(folder: Path) -> Callable:
    """A function: a kernel source with its macros to a library that runs it on the CPU, kept in the folder."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulator with")
    loaded: dict = {}
    harness = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(EMULATOR.iterdir())))

    def build(source):
        if source not in loaded:
            path = csrc_dir() / source.path
            macros = [f"-D{name}={value}" for name, value in source.macros]
            macros += [f'-DKERNELS="{path}"', f"-DEMULATE_{path.stem.upper()}"]
            flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{EMULATOR}", *macros]
            key = harness.copy()
            included = sorted([*path.parent.iterdir(), *csrc_dir().glob("*.cuh")])
            key.update(repr((compiler, flags, [p.read_bytes() for p in included])).encode())
            target = folder / f"{path.parent.name}_{path.stem}_{key.hexdigest()[:24]}.so"
            with FileLock(target.with_suffix(".lock")):  # one of pytest's processes builds, the others wait
                if not target.exists():
                    temporary = target.with_suffix(".new")
                    harnessed = EMULATOR / f"{path.parent.name}.cpp"
                    subprocess.run([compiler, *flags, str(harnessed), "-o", str(temporary)], check=True)
                    temporary.replace(target)
            loaded[source] = ctypes.CDLL(str(target))
        return loaded[source]

    return build


def emulate(way: Way, monkeypatch: pytest.MonkeyPatch, build: Callable) -> None:
    """The launches of the back end run on the CPU."""

    def launch(source, kernel, arguments, *, grid, threads, device, shared_bytes=0):
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        assert all(t.is_contiguous() for t in tensors)
        if way.operator not in (
            "rank_attention",
            "selective_scan_2d",
        ):  # whose kernels load single numbers, too
            assert all(t.data_ptr() % 16 == 0 for t in tensors)
        values = [
            ctypes.c_void_p(a.data_ptr() if isinstance(a, Tensor) else 0)
            if a is None or isinstance(a, Tensor)
            else a
            for a in arguments
        ]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        status = build(source).emulate(
            kernel.encode(), (ctypes.c_int * 3)(*grid), threads, shared_bytes, addresses
        )
        assert status == 0, f"the emulator does not know {kernel}"
        way.launches.append((kernel, source, grid))

    monkeypatch.setattr(way.module, "launch", launch)


# ---- Triton's kernels on a CPU


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter, with two faults fixed."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def with_index(patch):
        """It makes loop bounds of arrays of one number in a way that NumPy 2.4 no longer has."""

        def patched(tensor, scope):
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

        return patched

    def widened(handle):
        """It multiplies matrices of bfloat16 as if their bits were whole numbers."""
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    dot = interpreter.InterpreterBuilder.create_dot
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index(interpreter._patch_lang_tensor))
    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *others: dot(self, widened(a), widened(b), *others),
    )


def note_launches(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    def noted(run):
        def run_one(self, *arguments, **keywords):
            way.launches.append((self.fn.__name__, None, None))
            return run(self, *arguments, **keywords)

        return run_one

    for kernel in (JITFunction, InterpretedFunction):
        monkeypatch.setattr(kernel, "run", noted(kernel.run))


# ---- mamba_ssm without the package


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's function, written after its documentation."""

    def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        """``u, delta (B, D, L)``, ``A (D, N)``, ``B, C (B, G, N, L)``, ``D, delta_bias (D)``: token after token."""
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (u, delta, B, C))
        assert z is None
        assert delta_softplus
        delta = F.softplus(delta + delta_bias[:, None])
        B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
        state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
        for t in range(u.shape[2]):
            step = delta[..., t, None]
            state = (step * A).exp() * state + step * B[..., t] * u[..., t, None]
            outputs.append((state * C[..., t]).sum(-1) + D * u[..., t])
        return torch.stack(outputs, dim=-1)

    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = scan
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


# ---- the registry


def backend_of(way: Way) -> Backend:
    """The way's back end in the registry."""
    return OPERATORS[way.operator].backend(way.backend)


def replace_in_registry(monkeypatch: pytest.MonkeyPatch, backend: Backend, **functions: Callable) -> None:
    """Other functions for a back end: ``run`` or ``why_not``; the registry's entries are frozen otherwise."""
    for name, function in functions.items():
        monkeypatch.setitem(vars(backend), name, function)
