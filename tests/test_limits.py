"""An error because the machine ran out of something becomes one message; other errors keep their traceback."""

import errno
import resource
from pathlib import Path

import pytest
import torch
import typer

from sa2depth.cli.friendly import friendly
from sa2depth.errors import CheckpointError
from sa2depth.limits import told_limit
from sa2depth.models import create_model
from sa2depth.weights import save_model

# As PyTorch words them (pytorch/pytorch#5040, #108861, #973).
LOADER = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
TEXTS = [
    (
        LOADER + "RuntimeError: unable to allocate shared memory(shm) for file </torch_84_0>: Success (0)",
        "--shm-size=8g",
    ),
    ("DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that", "data.num_workers=0"),
    (
        "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)",
        "ulimit -n",
    ),
    ("received 0 items of ancdata", "ulimit -n"),
    ("DataLoader worker (pid 9) is killed by signal: Killed.", "data.num_workers=2"),
    (
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory",
        "data.batch_size",
    ),
    ("PytorchStreamWriter failed: No space left on device", "free some space"),
]


@pytest.mark.parametrize(("text", "advice"), TEXTS)
def test_what_pytorch_says_of_limits(text, advice):
    told = told_limit(RuntimeError(text))
    assert told is not None
    assert advice in told
    assert "Traceback" not in told


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), ValueError("x"), OSError(errno.EIO, "I/O")])
def test_other_errors_are_none_of_them(error):
    assert told_limit(error) is None


def test_a_full_disk():
    with pytest.raises(OSError, match="No space left") as caught:
        Path("/dev/full").write_text("x")
    assert told_limit(caught.value) == (
        "a file cannot be written (No space left on device): free some space, or name a folder on another disk"
    )


def test_a_file_of_a_full_disk_is_named():
    error = OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/best.ckpt")
    assert told_limit(error).startswith("/runs/best.ckpt cannot be written (Disk quota exceeded): free")


def test_memory():
    assert "data.batch_size" in told_limit(MemoryError())
    assert "gradient_checkpointing" in told_limit(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    )


def test_commands_end_with_the_message(capsys):
    def command():
        raise OSError(errno.ENOSPC, "No space left on device", "out.csv")

    with pytest.raises(typer.Exit) as ended:
        friendly(command)()
    assert ended.value.exit_code == 2
    assert "error: out.csv cannot be written (No space left on device)" in capsys.readouterr().err


def test_commands_keep_the_traceback_of_a_mistake():
    def command():
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        friendly(command)()


def test_a_model_that_does_not_fit_on_the_disk(tmp_path):
    """safetensors raises its own error and writes beside the file: the error must be translated, the file removed."""
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=8.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"nano\.safetensors cannot be written: .*File too large"):
            save_model(model, tmp_path / "nano.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
