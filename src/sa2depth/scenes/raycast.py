"""Exact first hits of pinhole rays with analytic solids, vectorised over pixels.

A ray is ``position + t * (right * x + down * y + forward)``, so ``t`` is the depth along the optical axis.
Each solid is tried only inside the rectangle that its bounding box covers on the image plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sa2depth.scenes.scene import Array, Shape, Solid, Vector, View

NEAR = 0.05  # m; nearer points are not seen
_SIGNS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=np.float64)
_EDGES = np.array([[a, b] for a in range(8) for b in (a ^ 1, a ^ 2, a ^ 4) if a < b])


@dataclass(frozen=True, slots=True)
class Grid:
    """The image-plane points of the rays: ``x (W,)`` rightwards and ``y (H,)`` down, at depth 1."""

    x: Array
    y: Array

    @classmethod
    def of(cls, intrinsics: Vector, u: Vector, v: Vector) -> "Grid":
        """The points at pixel coordinates ``u (W,)``, ``v (H,)`` of a camera ``intrinsics (3, 3)``."""
        x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
        return cls(x.astype(np.float32), y.astype(np.float32))


def local_rays(solid: Solid, view: View) -> tuple[Array, Array]:
    """Origin ``(3,)`` and axes ``(3, 3)`` of the rays of ``view`` in the solid's own frame."""
    origin = solid.rotation.T @ (view.position - solid.centre)
    return origin.astype(np.float32), (solid.rotation.T @ view.rotation).astype(np.float32)


def extents(solids: Sequence[Solid], view: View, margin: float = 0.0) -> Vector:
    """Left, top, right, bottom ``(P, 4)`` of each solid on the image plane at depth 1; empty ones have inf.

    Args:
        solids: P solids.
        view: the camera.
        margin: metres by which the solids grow on each side.
    """
    half = np.stack([s.half for s in solids]) + margin
    rotation = np.stack([view.rotation.T @ s.rotation for s in solids])
    centre = (np.stack([s.centre for s in solids]) - view.position) @ view.rotation
    corners = np.einsum("pij,pcj->pci", rotation, _SIGNS * half[:, None]) + centre[:, None]
    start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (NEAR - start[..., 2]) / (end[..., 2] - start[..., 2])
        cut = start + share[..., None] * (end - start)
        points = np.concatenate([corners, cut], axis=1)
        seen = np.concatenate([corners[..., 2] >= NEAR, (share > 0) & (share < 1)], axis=1)
        flat = points[..., :2] / points[..., 2:]
    low = np.where(seen[..., None], flat, np.inf).min(1) - 1e-4
    high = np.where(seen[..., None], flat, -np.inf).max(1) + 1e-4
    box = np.concatenate([low, high], axis=1)
    box[[s.shape == Shape.INTERIOR for s in solids]] = (-np.inf, -np.inf, np.inf, np.inf)
    return box


def rectangles(extent: Vector, grid: Grid) -> list[tuple[int, slice, slice]]:
    """Number, rows and columns of each solid that may be seen, from its ``extents (P, 4)``."""
    # with float32 points and float64 bounds, searchsorted would convert at every call
    x, y = grid.x.astype(np.float64), grid.y.astype(np.float64)
    left, right = np.searchsorted(x, extent[:, 0]), np.searchsorted(x, extent[:, 2], side="right")
    top, bottom = np.searchsorted(y, extent[:, 1]), np.searchsorted(y, extent[:, 3], side="right")
    seen = np.flatnonzero((left < right) & (top < bottom)).tolist()
    return [(n, slice(int(top[n]), int(bottom[n])), slice(int(left[n]), int(right[n]))) for n in seen]


def _directions(axes: Array, grid: Grid, rows: slice, columns: slice) -> list[Array]:
    """The three local components ``(h, w)`` of the rays of a rectangle, never exactly zero."""
    across = axes[:, :1] * grid.x[columns] + (axes[:, 2:] + np.float32(1e-20))
    down = axes[:, 1:2] * grid.y[rows]
    return [down[k][:, None] + across[k][None] for k in range(3)]


def _slabs(origin: Array, half: Array, rays: list[Array]) -> tuple[Array, Array]:
    """The points at which rays enter and leave a box ``(h, w)``; entering after leaving means a miss."""
    enter = leave = None
    for k in range(3):
        inverse = np.reciprocal(rays[k] + np.float32(1e-20))
        middle = inverse * -origin[k]
        reach = np.abs(inverse)
        reach *= half[k]
        first, last = middle - reach, middle + reach
        enter = first if enter is None else np.maximum(enter, first, out=enter)
        leave = last if leave is None else np.minimum(leave, last, out=leave)
    assert enter is not None
    assert leave is not None
    return enter, leave


def _ellipsoid(origin: Array, half: Array, rays: list[Array]) -> Array:
    """Entry depth ``(h, w)``; NaN or negative where missed."""
    o = origin / half
    d = [ray * (1 / h) for ray, h in zip(rays, half, strict=True)]
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = d[0] * o[0] + d[1] * o[1] + d[2] * o[2]
    return (-b - np.sqrt(b * b - a * (o @ o - np.float32(1)))) / a


def _frustum(origin: Array, half: Array, radii: tuple[float, float], rays: list[Array]) -> Array:
    """Entry depth ``(h, w)`` through the side or a lid; infinite where missed."""
    height = half[2]
    slope = np.float32((radii[1] - radii[0]) / (2 * height))
    radius = np.float32((radii[0] + radii[1]) / 2) + slope * origin[2]
    dx, dy, dz = rays
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = dx * origin[0] + dy * origin[1] - (slope * radius) * dz
    c = origin[0] ** 2 + origin[1] ** 2 - radius**2
    root = np.sqrt(b * b - a * c)
    best = np.full_like(dx, np.inf)
    for depth in ((-b - root) / a, (-b + root) / a):
        good = (np.abs(origin[2] + depth * dz) <= height) & (depth > NEAR)
        best = np.where(good, np.minimum(best, depth), best)
    for z, lid in ((-height, radii[0]), (height, radii[1])):
        depth = (z - origin[2]) / dz
        x, y = origin[0] + depth * dx, origin[1] + depth * dy
        good = (x * x + y * y <= lid * lid) & (depth > NEAR)
        best = np.where(good, np.minimum(best, depth), best)
    return best


def cast(
    solids: Sequence[Solid], view: View, grid: Grid, extent: Vector | None = None
) -> tuple[Array, NDArray[np.int16]]:
    """Find the first hit of each ray.

    Args:
        solids: P solids.
        view: the camera.
        grid: H by W image-plane points.
        extent: ``extents(solids, view)`` if already known.

    Returns:
        Depth along the optical axis ``(H, W)``, metres, infinite where nothing is hit, and the number of the
        solid hit ``(H, W)``, -1 for none.
    """
    depth = np.full((len(grid.y), len(grid.x)), np.inf, dtype=np.float32)
    index = np.full(depth.shape, -1, dtype=np.int16)
    if not solids:
        return depth, index
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for number, rows, columns in rectangles(extents(solids, view) if extent is None else extent, grid):
            solid = solids[number]
            origin, axes = local_rays(solid, view)
            half = solid.half.astype(np.float32)
            rays = _directions(axes, grid, rows, columns)
            known = depth[rows, columns]
            if solid.shape == Shape.INTERIOR:
                hit = _slabs(origin, half, rays)[1]
                better = (hit < known) & (hit > NEAR)
            elif solid.shape == Shape.BOX:
                hit, leave = _slabs(origin, half, rays)
                better = (hit < np.minimum(known, leave)) & (hit > NEAR)
            elif solid.shape == Shape.ELLIPSOID:
                hit = _ellipsoid(origin, half, rays)
                better = (hit < known) & (hit > NEAR)
            else:
                hit = _frustum(origin, half, solid.radii, rays)
                better = hit < known
            np.copyto(known, hit, where=better)
            np.copyto(index[rows, columns], np.int16(number), where=better)
    return depth, index
