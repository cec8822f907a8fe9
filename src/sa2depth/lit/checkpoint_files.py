"""Checkpoints appear whole or not at all, even if the disk is full.

Lightning itself writes them into the folder for temporary files first. If that is on another disk, it copies them over
the old ones, and a full disk leaves neither.
"""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from sa2depth.atomic import atomic_path
from sa2depth.errors import CheckpointError
from sa2depth.quoting import override


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints; the old file stays until the new one is complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: The disk is full or cannot be written; the message names the checkpoint to resume from.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            why = f"{error.strerror or error}; it needs {buffer.tell() / 1e6:,.1f} MB"
            raise CheckpointError(f"{path} cannot be written ({why}){_left(Path(path))}") from error


def _left(path: Path) -> str:
    last = path.parent / "last.ckpt"
    left = last if last.is_file() else path
    if not left.is_file():
        return ": no checkpoint was written yet; free some space and start the run again"
    return f": free some space, then {override('resume', left)} continues from the previous one"
