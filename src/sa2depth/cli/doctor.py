"""`sa2depth doctor`: lists what this machine has, tests each fast path, and tells how to get what is missing."""

from typing import TYPE_CHECKING, Annotated

import typer

from sa2depth.cli.options import Device
from sa2depth.stages import stage

if TYPE_CHECKING:
    import torch


def doctor(
    device: Device = "auto",
    no_test: Annotated[
        bool, typer.Option("--no-test", help="Only list what is there; do not run operators.")
    ] = False,
) -> None:
    """Print versions, devices and back ends, test each back end against float64, and say what is missing."""
    from rich.console import Console

    with stage("loading PyTorch"):
        from sa2depth.infer.predictor import pick_device

    console = Console(soft_wrap=True, highlight=False)
    place = pick_device(device)
    for name, value in (*_versions(), *_device(place), *_kernels(place)):
        console.print(f"[bold]{name:<12}[/bold] {value}")
    if no_test:
        return
    wrong = _test(place, console)
    if wrong:
        console.print(
            f"[red bold]{wrong} back end(s) give wrong numbers: set SA2DEPTH_OPS=torch and report this"
        )
        raise typer.Exit(1)
    console.print("[green]every back end that runs here is right")


def _versions() -> list[tuple[str, str]]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("torch", "torchvision", "lightning", "hydra-core", "timm", "triton", "cuda-core", "mamba-ssm")
    return [
        ("sa2depth", of("sa2depth")),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("packages", ", ".join(f"{package} {of(package)}" for package in packages)),
    ]


def _device(device: "torch.device") -> list[tuple[str, str]]:
    import os

    import torch

    from sa2depth.threads import usable_cores

    built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    if device.type != "cuda":
        found = f"{torch.cuda.device_count()} CUDA device(s) usable" if torch.version.cuda else "no CUDA"
        cores = f"{torch.get_num_threads()} threads, {usable_cores()} of {os.cpu_count()} cores usable"
        return [("device", f"{device}, {cores}; {built}, {found}")]
    index = device.index or 0
    major, minor = torch.cuda.get_device_capability(index)
    free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(index))
    return [
        (
            "device",
            f"{device}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}; {built}",
        ),
        ("memory", f"{free:.1f} of {total:.1f} GiB free"),
    ]


def _kernels(device: "torch.device") -> list[tuple[str, str]]:
    from sa2depth.ops.choice import backend
    from sa2depth.ops.runtime import cpp, nvrtc, triton

    library = cpp.why_unavailable()
    folder = nvrtc.cache_dir()
    try:
        sizes = [file.stat().st_size for file in folder.iterdir() if file.suffix == ".cubin"]
        kept = f"{len(sizes)} compiled, {sum(sizes) / 1e6:.1f} MB"
    except FileNotFoundError:
        kept = "empty"
    except OSError as error:
        kept = f"cannot be used ({error.strerror}), every process compiles again"
    rows = [
        ("back end", f"{backend()} (SA2DEPTH_OPS)"),
        (
            "CPU library",
            library or f"built, code path {cpp.path()} of {', '.join(cpp.paths())}, {cpp.pool()}",
        ),
        ("kernel cache", f"{folder}: {kept} (SA2DEPTH_CACHE)"),
    ]
    if device.type == "cuda":
        rows.insert(2, ("CUDA kernels", nvrtc.why_unavailable(device) or "can be compiled"))
        rows.insert(3, ("Triton", triton.why_unavailable(device) or "can be compiled"))
    return rows


def _test(device: "torch.device", console: "object") -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sa2depth.ops import selftest, trust

    assert isinstance(console, Console)
    table = Table(title=f"operators on {device} against float64 (right: error below {selftest.TOLERANCE:g})")
    for heading in ("operator", "back end", "error", "forward", ""):
        table.add_column(heading)
    wrong = 0
    for operator, backend in selftest.offered(device):
        try:
            with console.status(f"{operator} on the back end {backend}: kernels are compiled the first time"):
                check = selftest.check(operator, backend, device)
        except Exception as error:  # whatever the error: still test the others
            table.add_row(operator, backend, "", "", f"[red bold]FAILED[/] {escape(str(error))}")
            wrong += 1
            continue
        if check.error is None:
            table.add_row(operator, backend, "", "", escape(check.reason))
            continue
        if backend != "torch":
            trust.remember(check, device)
        wrong += not check.passed
        verdict = "right" if check.passed else "[red bold]WRONG"
        table.add_row(operator, backend, f"{check.error:.1e}", f"{check.forward_ms:.3f} ms", verdict)
    console.print(table)
    return wrong
