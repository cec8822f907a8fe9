"""Fitted median depth maps on disk: fitting reads every training map, and gives the same map every time.

A map is kept under a hash of everything that it depends on, with a checksum, in ``baselines`` of the folder that
`sa2depth.resources.user_cache` names. A folder that cannot be read or written costs the time to fit again, and a line.
"""

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sa2depth.atomic import atomic_path
from sa2depth.data.sample import Source
from sa2depth.metrics import Protocol
from sa2depth.resources import user_cache

_log = logging.getLogger(__name__)

_VERSION = 1  # of what fitting computes: raise it with every change of the result
_CHECKSUM_BYTES = hashlib.sha256().digest_size


def place_of(train: Source, indices: Sequence[int], protocol: Protocol) -> Path | None:
    """Where the map of some samples under the frame and the limits of a protocol is kept.

    Returns:
        A path; None where the source cannot say what its depth depends on (``fingerprint``), or there is no folder.
    """
    fingerprint = getattr(train, "fingerprint", None)
    files = fingerprint(indices) if callable(fingerprint) else None
    if files is None:
        return None
    facts = (_VERSION, cv2.__version__, files, protocol.frame, protocol.min_depth, protocol.max_depth)
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    try:
        return user_cache() / "baselines" / f"median-{name}.bin"
    except RuntimeError:  # a user without a home folder
        return None


def read_map(path: Path) -> NDArray[np.float32] | None:
    """``(H,W)`` metres that `keep_map` has written; None where there are none, or not whole."""
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning(
            "the median depth map is fitted again: %s cannot be read (%s)", path, error.strerror or error
        )
        return None
    checksum, data = contents[:_CHECKSUM_BYTES], contents[_CHECKSUM_BYTES:]
    if hashlib.sha256(data).digest() != checksum:
        _log.warning("the median depth map is fitted again: %s is damaged", path)
        return None
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False), np.float32)


def keep_map(path: Path, fitted: NDArray[np.float32]) -> None:
    """Write a map for later runs, or say in one line why that cannot be done."""
    data = io.BytesIO()
    np.save(data, fitted, allow_pickle=False)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(data.getvalue()).digest() + data.getvalue())
    except OSError as error:
        _log.warning(
            "the median depth map cannot be kept (%s): every run fits it again; set SA2DEPTH_CACHE to a folder that "
            "can be written",
            error,
        )
