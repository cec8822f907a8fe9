"""A cache of fitted median depth maps, since fitting reads every training map and always gives the same result.

A map is kept with a checksum, under a hash of everything that it depends on, in ``baselines`` of the folder
`sa2depth.resources.user_cache`. If that folder cannot be read or written, a warning is logged and the map fitted again.
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

_VERSION = 1  # of the fit: raise it with every change of its result
_CHECKSUM_BYTES = hashlib.sha256().digest_size


def place_of(train: Source, indices: Sequence[int], protocol: Protocol) -> Path | None:
    """The path of the kept map of some samples, under the frame and the limits of a protocol.

    Returns:
        A path; None if the source has no ``fingerprint`` of its depth, or there is no folder.
    """
    fingerprint = getattr(train, "fingerprint", None)
    files = fingerprint(indices) if callable(fingerprint) else None
    if files is None:
        return None
    facts = (_VERSION, cv2.__version__, files, protocol.frame, protocol.min_depth, protocol.max_depth)
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    try:
        return user_cache() / "baselines" / f"median-{name}.bin"
    except RuntimeError:  # the user has no home folder
        return None


def read_map(path: Path) -> NDArray[np.float32] | None:
    """``(H,W)`` metres that `keep_map` has written; None if there are none or the file is damaged."""
    try:
        contents = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
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
    """Write a map for later runs; if that fails, log a warning with the reason."""
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
