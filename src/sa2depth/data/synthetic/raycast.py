"""Exact first hits of pinhole rays with analytic solids, vectorised over pixels.

A ray is ``position + t * (right * x + down * y + forward)``, so ``t`` *is* the depth along the optical axis.
Each solid is tried only inside the rectangle that its bounding box covers on the image plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sa2depth.data.synthetic.scene import Array, Shape, Solid, Vector, View

NEAR = 0.05  # m; nothing nearer is seen
_SIGNS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=np.float64)
_EDGES = np.array([[a, b] for a in range(8) for b in (a ^ 1, a ^ 2, a ^ 4) if a < b])


@dataclass(frozen=True, slots=True)
class Grid:
    """The image-plane points that are looked through: ``x (W,)`` rightwards and ``y (H,)`` down, at depth 1."""

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


def rectangles(solids: Sequence[Solid], view: View, grid: Grid, margin: float = 0.0) -> NDArray[np.int64]:
    """Rows and columns ``(P, 4)`` = (top, bottom, left, right) that each solid can cover, ends excluded.

    Args:
        solids: P solids.
        view: the camera.
        grid: H by W image-plane points.
        margin: metres by which the solids are swollen.
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
    box = np.stack(
        [
            np.searchsorted(grid.y, low[:, 1]),
            np.searchsorted(grid.y, high[:, 1], side="right"),
            np.searchsorted(grid.x, low[:, 0]),
            np.searchsorted(grid.x, high[:, 0], side="right"),
        ],
        axis=1,
    )
    inside = np.array([s.shape == Shape.INTERIOR for s in solids])
    box[inside] = (0, len(grid.y), 0, len(grid.x))
    return box


def _directions(axes: Array, grid: Grid, rows: slice, columns: slice) -> list[Array]:
    """The three local components ``(h, w)`` of the rays of a rectangle, never exactly zero."""
    across = axes[:, :1] * grid.x[columns] + (axes[:, 2:] + np.float32(1e-20))
    down = axes[:, 1:2] * grid.y[rows]
    return [down[k][:, None] + across[k][None] for k in range(3)]


def _slabs(origin: Array, half: Array, rays: list[Array]) -> tuple[Array, Array]:
    """Where rays enter and leave a box ``(h, w)``; entering after leaving means a miss."""
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


def cast(solids: Sequence[Solid], view: View, grid: Grid) -> tuple[Array, NDArray[np.int16]]:
    """First hits.

    Args:
        solids: P solids.
        view: the camera.
        grid: H by W image-plane points.

    Returns:
        Depth along the optical axis ``(H, W)``, metres, infinite where nothing is met, and the number of the
        solid met ``(H, W)``, -1 for none.
    """
    depth = np.full((len(grid.y), len(grid.x)), np.inf, dtype=np.float32)
    index = np.full(depth.shape, -1, dtype=np.int16)
    if not solids:
        return depth, index
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for number, (top, bottom, left, right) in enumerate(rectangles(solids, view, grid).tolist()):
            if top >= bottom or left >= right:
                continue
            solid, rows, columns = solids[number], slice(top, bottom), slice(left, right)
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
