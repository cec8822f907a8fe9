"""Reading a weight file of any kind without trusting it.

Safetensors are plain numbers. PyTorch files are unpickled with ``weights_only=True`` plus NumPy's plain arrays, which
the released training script saves in its files. Every error names the file, what is wrong with it, and what to do.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sa2depth.errors import CheckpointError

_TEXT_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")


class UnreadableError(CheckpointError):
    """A file from which no weights can be read; the message says what is wrong and what to do."""

    def __init__(self, file: Path, what: str, advice: str) -> None:
        super().__init__(file, what, advice)
        self.what = what

    def __str__(self) -> str:
        file, what, advice = self.args
        return f"{file} {what}: {advice}"


@dataclass(frozen=True)
class WeightFile:
    """The content of a file, not yet interpreted.

    Attributes:
        path: The file.
        content: Tensors by name (safetensors), or the pickled mapping.
        metadata: The text fields of a safetensors header; empty for PyTorch files.
    """

    path: Path
    content: Mapping[str, Any]
    metadata: Mapping[str, str]


def read_file(path: str | os.PathLike[str], *, mapped: bool = False) -> WeightFile:
    """Read a safetensors or PyTorch file onto the CPU; nothing in it is ever executed.

    Args:
        path: The file; its first bytes tell its kind, not its suffix.
        mapped: Leave a PyTorch file's tensors on the disk if its format allows it, to read only the rest.

    Returns:
        The content, unchanged.

    Raises:
        CheckpointError: There is no such file; it is a folder, empty, truncated or foreign; it is a web page saved
            under the name of a checkpoint; or it is a pickle with objects other than tensors and plain values.
    """
    file = Path(path).expanduser()
    head = _first_bytes(file)
    if _looks_like_safetensors(head):
        return _read_safetensors(file)
    return _read_torch(file, mapped=mapped and head.startswith(b"PK\x03\x04"))


def holds_weights_alone(path: str | os.PathLike[str]) -> bool:
    """True if a file is safetensors, which can hold only weights; judged by its first bytes.

    Args:
        path: The file.

    Raises:
        CheckpointError: The first bytes show one of the errors of `read_file`.
    """
    return _looks_like_safetensors(_first_bytes(Path(path).expanduser()))


def _first_bytes(file: Path) -> bytes:
    """The first bytes; raises an error if the file cannot be a checkpoint."""
    if not file.exists():
        raise CheckpointError(f"no checkpoint at {file}{_neighbours(file)}")
    if file.is_dir():
        raise UnreadableError(file, "is a folder", f"name the checkpoint file inside it{_files_inside(file)}")
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise UnreadableError(file, "cannot be read", error.strerror or str(error)) from error
    if not head:
        raise UnreadableError(file, "is empty", "the download or the copy failed; fetch it again")
    if head.lstrip().lower().startswith(_TEXT_STARTS):
        raise UnreadableError(
            file,
            "is a web page, not a checkpoint",
            "the link led to a sign-in, confirmation or error page. Open the link in a browser, download the file "
            "itself and try again",
        )
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableError(
            file, "is a Git LFS pointer, not the weights themselves", "run `git lfs pull` in its checkout"
        )
    return head


def _looks_like_safetensors(head: bytes) -> bool:
    """Safetensors begin with the header's length (8 bytes, little endian) and a JSON object."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(file: Path) -> WeightFile:
    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is a damaged safetensors file ({error}): it was cut off or altered; fetch it again"
        ) from error
    return WeightFile(file, tensors, metadata)


def _read_torch(file: Path, *, mapped: bool) -> WeightFile:
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Weights only load failed" in str(error):
            if not _is_pickle(file):
                raise _foreign(file) from error
            raise UnreadableError(
                file,
                "holds Python objects besides tensors, and unpickling those can run any code, so it is refused "
                f"({_refused(str(error))})",
                "if you trust its author, save only the tensors again: "
                "python -c \"import torch; c = torch.load('OLD', weights_only=False); "
                "torch.save(c.get('model', c.get('state_dict', c)), 'NEW')\"",
            ) from error
        raise _foreign(file) from error
    # Other bytes are read as pickle instructions too, which can raise anything, even an IndexError.
    except Exception as error:
        if _is_pickle(file):
            raise UnreadableError(
                file,
                f"is a damaged PyTorch file ({_reason(error)})",
                "it was cut off or altered; fetch it again",
            ) from error
        raise _foreign(file) from error
    if not isinstance(content, Mapping):
        raise UnreadableError(
            file,
            f"holds a {type(content).__name__}, not a dict of tensors",
            "save `model.state_dict()` instead",
        )
    return WeightFile(file, content, {})


def _is_pickle(file: Path) -> bool:
    """True if the file begins like a PyTorch zip or a (legacy) pickle."""
    with file.open("rb") as stream:
        head = stream.read(4)
    return head.startswith(b"PK") or (
        head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    )


def _foreign(file: Path) -> CheckpointError:
    return UnreadableError(
        file,
        "is not a checkpoint",
        "it is neither a safetensors nor a PyTorch file. Use a file of this project (.safetensors), of its training "
        "(.ckpt), a released SA2Depth file, or InternImage or timm weights (.pth)",
    )


def _reason(error: BaseException) -> str:
    return _first_sentence(str(error).strip() or type(error).__name__)


def _refused(message: str) -> str:
    """The name of the refused class, taken from PyTorch's long message."""
    for line in message.splitlines():
        if "GLOBAL" in line or "Unsupported" in line:
            return _first_sentence(line.strip())
    return _first_sentence(message.strip())


def _first_sentence(text: str) -> str:
    """The first sentence; PyTorch's further sentences give advice that does not apply here."""
    return text.splitlines()[0].partition(". ")[0][:160]


def _neighbours(file: Path) -> str:
    """The checkpoints in the folder of a missing file, as part of a message."""
    if not file.parent.is_dir():
        return f": the folder {file.parent} does not exist either"
    return _files_inside(file.parent)


def _files_inside(folder: Path) -> str:
    suffixes = {".safetensors", ".ckpt", ".pth", ".pt"}
    names = sorted(item.name for item in folder.iterdir() if item.suffix in suffixes)
    return f" (found in {folder}: {', '.join(names[:5])})" if names else ""


def _numpy_globals() -> list[Any]:
    """Classes and functions that unpickle NumPy arrays and scalars of numbers; they run no code from the file.

    The released training script writes ``best_eval_steps`` as an array, which torch >= 2.6 refuses by default. Both
    module paths are listed because NumPy 2 moved them.
    """
    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    reconstruct, scalar = multiarray._reconstruct, multiarray.scalar
    numbers = [np.dtype(code) for code in "?bBhHiIlLqQefd"]
    return [
        np.ndarray,
        np.dtype,
        *{type(number) for number in numbers},
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]
