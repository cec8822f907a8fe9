"""Depth as colours in a fixed metric range: the same colour means the same depth in every picture of the project."""

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.errors import ConfigError, ShapeError

# Colour maps by name.
COLORMAPS = {
    name: getattr(cv2, f"COLORMAP_{name.upper()}")
    for name in ("turbo", "magma", "viridis", "inferno", "plasma", "cividis")
}
DEPTH_MAP, ERROR_MAP = "turbo", "magma"


def colorize(
    depth: NDArray[Any] | torch.Tensor,
    vmin: float,
    vmax: float,
    colormap: str = DEPTH_MAP,
    invalid: tuple[int, int, int] = (0, 0, 0),
) -> NDArray[np.uint8]:
    """Depth map as colours.

    The caller gives the range in metres; it does not depend on the image, so the same colour means the same depth in
    every picture.

    Args:
        depth: ``(H,W)`` metres (leading axes of length 1 are fine).
        vmin: Metres shown in the first colour; nearer depths get the same colour.
        vmax: Metres shown in the last colour; farther depths get the same colour.
        colormap: A key of ``COLORMAPS``.
        invalid: RGB of pixels that are not measured (0 or below) or not finite.

    Returns:
        ``(H,W,3)`` uint8 RGB.

    Raises:
        ConfigError: The colour map is unknown, or ``vmin`` is not below ``vmax``.
        ShapeError: ``depth`` is not one depth map.
    """
    values = as_map(depth)
    return paint(values, np.isfinite(values) & (values > 0), vmin, vmax, colormap, invalid)


def paint(
    values: NDArray[np.float64],
    valid: NDArray[np.bool_],
    vmin: float,
    vmax: float,
    colormap: str,
    invalid: tuple[int, int, int],
) -> NDArray[np.uint8]:
    """Like `colorize` for any map of values; pixels that are not ``valid`` get the colour ``invalid``."""
    if not (math.isfinite(vmin) and math.isfinite(vmax) and vmin < vmax):
        raise ConfigError(f"the colour range must be finite and ascending, got {vmin} to {vmax}")
    steps = np.where(valid, values, vmin)
    steps -= vmin
    steps /= vmax - vmin
    np.clip(steps, 0.0, 1.0, out=steps)
    steps *= 255
    painted = np.take(color_table(colormap), np.rint(steps, out=steps).astype(np.uint8), axis=0)
    painted[~valid] = invalid
    return painted


@lru_cache
def color_table(colormap: str) -> NDArray[np.uint8]:
    """``(256,3)`` RGB colours of an OpenCV map."""
    if colormap not in COLORMAPS:
        raise ConfigError(f"unknown colour map '{colormap}': choose one of {', '.join(COLORMAPS)}")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, COLORMAPS[colormap])[:, 0, ::-1])


def as_map(depth: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
    """``(H,W)`` values on the CPU, from an array or a tensor that may have leading axes of length 1."""
    values = depth.detach().cpu().double().numpy() if isinstance(depth, torch.Tensor) else np.asarray(depth)
    if values.ndim < 2 or any(length != 1 for length in values.shape[:-2]):
        raise ShapeError(f"expected one (H, W) depth map, got shape {values.shape}")
    return values.reshape(values.shape[-2:]).astype(np.float64)


def as_picture(image: NDArray[Any] | torch.Tensor) -> NDArray[np.uint8]:
    """``(H,W,3)`` RGB, from uint8 or from floating values in [0, 1], channels first or last."""
    values = image.detach().cpu().float().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ShapeError(f"expected one RGB image (H, W, 3) or (3, H, W), got shape {values.shape}")
    if values.dtype != np.uint8:
        values = np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)
    return values
