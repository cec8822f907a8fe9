"""Turn first hits into a photograph: surface points, lamps, shadows, occlusion, then lens and sensor.

Only visible points are shaded. The colour of a pixel is the mean of its centre and its four corners
("quincunx"); the depth comes from the centre rays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sa2depth.scenes.raycast import Grid, cast, extents, local_rays, rectangles
from sa2depth.scenes.scene import Array, Light, Scene, Shape, Solid, Vector, View
from sa2depth.scenes.textures import reflectance

_SHADOW_SIZE = 128  # texels per side of the shadow map
_OCCLUSION_REACH = 0.35  # m; distance to which a solid darkens its surroundings


@dataclass(frozen=True, slots=True)
class _Surface:
    """N visible points: world position, unit normal, reflectance, glow ``(3, N)``; gloss, solid ``(N,)``."""

    point: Array
    normal: Array
    colour: Array
    glow: Array
    gloss: Array
    solid: NDArray[np.int16]


def _chart(solid: Solid, local: Array) -> tuple[Array, Array, Array, NDArray[np.int8]]:
    """Local normal ``(3, n)``, surface coordinates ``u, v (n,)`` and face ``(n,)`` of points on a solid."""
    x, y, z = local
    half = solid.half.astype(np.float32)
    normal = np.zeros_like(local)
    if solid.shape in (Shape.BOX, Shape.INTERIOR):
        share = np.abs(local) / half[:, None]
        on_z = share[2] >= np.maximum(share[0], share[1])
        on_x = ~on_z & (share[0] >= share[1])
        axis = np.where(on_z, 2, np.where(on_x, 0, 1)).astype(np.int8)
        column = np.arange(local.shape[1])
        sign = np.sign(local[axis, column])
        normal[axis, column] = -sign if solid.shape == Shape.INTERIOR else sign
        return normal, np.where(on_x, y, x), np.where(on_z, y, z), axis * 2 + (sign > 0)
    if solid.shape == Shape.ELLIPSOID:
        normal = local / (half * half)[:, None]
        normal /= np.sqrt((normal * normal).sum(0))
        return normal, np.arctan2(y, x) * half[0], z, np.zeros(x.shape, np.int8)
    lid = np.abs(z) >= half[2] * np.float32(1 - 1e-4)
    slope = np.float32((solid.radii[1] - solid.radii[0]) / (2 * half[2]))
    radius = np.sqrt(x * x + y * y) + np.float32(1e-9)
    scale = 1 / np.sqrt(1 + slope * slope)
    side = np.stack([x / radius * scale, y / radius * scale, np.full_like(z, -slope * scale)])
    normal = np.where(lid, np.stack([np.zeros_like(z), np.zeros_like(z), np.sign(z)]), side)
    u = np.where(lid, x, np.arctan2(y, x) * np.float32(max(solid.radii)))
    return normal, u, np.where(lid, y, z), np.where(lid, 4 + (z > 0), 0).astype(np.int8)


def _surface(
    scene: Scene, x: Array, y: Array, depth: Array, index: NDArray[np.int16], pixel: float
) -> _Surface:
    """Look up the visible surface; inputs ``(N,)`` sorted by ``index``, ``pixel`` the size of a pixel at depth 1."""
    count = len(depth)
    normal, colour, glow = (np.zeros((3, count), np.float32) for _ in range(3))
    gloss = np.zeros(count, np.float32)
    rays = np.stack([x, y, np.ones_like(x)])
    turned = scene.view.rotation.astype(np.float32) @ rays
    point = turned * depth + scene.view.position.astype(np.float32)[:, None]
    starts = np.searchsorted(index, np.arange(len(scene.solids) + 1))
    for number, solid in enumerate(scene.solids):
        part = slice(int(starts[number]), int(starts[number + 1]))
        if part.start == part.stop:
            continue
        origin, axes = local_rays(solid, scene.view)
        direction = axes @ rays[:, part]
        local = direction * depth[part] + origin[:, None]
        own, u, v, face = _chart(solid, local)
        normal[:, part] = solid.rotation.astype(np.float32) @ own
        facing = np.abs((own * direction).sum(0)) / np.sqrt((direction * direction).sum(0))
        width = depth[part] * np.float32(pixel) / np.sqrt(np.maximum(facing, np.float32(0.06)))
        several = len(solid.materials) > 1
        for side in np.unique(face).tolist() if several else (0,):
            material = solid.materials[side if several else 0]
            # a slice keeps the common case (one material) free of copies
            pick = np.flatnonzero(face == side) if several else slice(None)
            shade = reflectance(material, u[pick], v[pick], width[pick])
            colour[:, part][:, pick] = shade
            gloss[part][pick] = material.gloss
            if material.glow:
                glow[:, part][:, pick] = shade * np.float32(material.glow)
    return _Surface(point, normal, colour, glow, gloss, index)


def _shadow_view(light: Light, aim: Vector) -> View:
    """The main light's view: down for a lamp, towards the camera's surroundings for the sun."""
    forward = aim - light.position if light.sun else np.array([0.0, 0.0, -1.0])
    forward = forward / np.linalg.norm(forward)
    helper = np.array([1.0, 0.0, 0.0]) if abs(forward[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, helper)
    right /= np.linalg.norm(right)
    return View(light.position, np.stack([right, np.cross(forward, right), forward], axis=1))


def _shadow(scene: Scene, surface: _Surface) -> Array:
    """Share ``(N,)`` of the main light that arrives, from a shadow map with bilinear comparison.

    A solid is convex and therefore never shadows itself: the map keeps its number beside the depth.
    """
    numbers = np.array([i for i, s in enumerate(scene.solids) if s.shadow], dtype=np.int16)
    if not len(numbers):
        return np.ones(surface.gloss.shape, np.float32)
    light, aim = scene.lights[0], scene.view.position + 3.0 * scene.view.rotation[:, 2]
    view, reach = _shadow_view(light, aim), scene.shadow_reach
    ticks = np.linspace(-reach, reach, _SHADOW_SIZE, dtype=np.float32)
    depth, index = cast([scene.solids[i] for i in numbers], view, Grid(ticks, ticks))
    owner = np.append(numbers, np.int16(-1))[index].ravel()
    flat = depth.ravel()
    place = view.rotation.T.astype(np.float32) @ (surface.point - view.position.astype(np.float32)[:, None])
    ahead = place[2] > 0.05
    z = np.where(ahead, place[2], np.float32(1))
    scale = np.float32((_SHADOW_SIZE - 1) / (2 * reach))
    a = np.clip((place[0] / z + np.float32(reach)) * scale, 0, _SHADOW_SIZE - 1.001)
    b = np.clip((place[1] / z + np.float32(reach)) * scale, 0, _SHADOW_SIZE - 1.001)
    column, row = a.astype(np.int32), b.astype(np.int32)
    a -= column
    b -= row
    base = row * _SHADOW_SIZE + column
    limit = z - np.float32(0.01)
    blocked = np.zeros_like(z)
    for step, weight in ((0, (1 - a) * (1 - b)), (1, a * (1 - b)), (_SHADOW_SIZE, (1 - a) * b),
                         (_SHADOW_SIZE + 1, a * b)):  # fmt: skip
        texel = base + step
        blocked += weight * ((flat[texel] < limit) & (owner[texel] != surface.solid))
    return 1 - blocked * ahead


def _light(scene: Scene, surface: _Surface, toward: Array) -> Array:
    """Outgoing radiance ``(3, N)``: ambient, lamps and the main light's highlight."""
    above, below = (np.array(c, np.float32)[:, None] for c in scene.ambient)
    up = np.float32(0.5) + np.float32(0.5) * surface.normal[2]
    total = below + (above - below) * up
    shine = np.zeros_like(up)
    for number, light in enumerate(scene.lights):
        way = light.position.astype(np.float32)[:, None] - surface.point
        square = (way * way).sum(0)
        way *= 1 / np.sqrt(square)
        lambert = np.maximum((way * surface.normal).sum(0), 0)
        if not light.sun:
            lambert /= square + np.float32(0.4)
        if number == 0:
            arrives = _shadow(scene, surface)
            lambert *= arrives
            middle = way - toward
            middle *= 1 / np.sqrt((middle * middle).sum(0))
            shine = np.maximum((middle * surface.normal).sum(0), 0) ** 40 * surface.gloss * arrives
        total = total + np.array(light.power, np.float32)[:, None] * lambert
    return surface.colour * total + surface.glow + shine * np.float32(0.8)


def _occlusion(scene: Scene, grid: Grid, depth: Array, index: NDArray[np.int16]) -> Array:
    """Cheap ambient occlusion ``(H, W)``: solids and room corners darken nearby points."""
    height, width = depth.shape
    seen = index >= 0
    rotation = scene.view.rotation.astype(np.float32)
    rays = (
        rotation[:, 0, None, None] * grid.x[None, None]
        + rotation[:, 1, None, None] * grid.y[None, :, None]
        + rotation[:, 2, None, None]
    )
    point = rays * np.where(seen, depth, 0) + scene.view.position.astype(np.float32)[:, None, None]
    result = np.ones((height, width), np.float32)
    for number, rows, columns in rectangles(extents(scene.solids, scene.view, _OCCLUSION_REACH), grid):
        solid = scene.solids[number]
        size = min(1.0, float(np.sort(solid.half)[1]) / 0.25)
        # Table legs and boards darken too little to see
        if solid.shape != Shape.INTERIOR and (not solid.shadow or size < 0.15):
            continue
        if solid.shape == Shape.INTERIOR:
            # A point on a wall touches that wall: divide this constant factor out again
            factor = np.ones((height, width), np.float32)
            for k in range(3):
                gap = solid.half[k] - np.abs(point[k] - np.float32(solid.centre[k]))
                factor *= 1 - np.float32(0.38) * np.exp(gap.astype(np.float32) * np.float32(-3.2))
            result *= np.minimum(factor / np.float32(1 - 0.38), 1)
            continue
        offset = point[:, rows, columns] - solid.centre.astype(np.float32)[:, None, None]
        square = np.zeros(offset.shape[1:], np.float32)
        for k in range(3):
            r = solid.rotation[:, k].astype(np.float32)
            out = np.abs(r[0] * offset[0] + r[1] * offset[1] + r[2] * offset[2]) - np.float32(solid.half[k])
            out = np.maximum(out, 0, out=out)
            square += out * out
        dark = np.float32(0.42 * size) * np.exp(np.sqrt(square) * np.float32(-3.3 / _OCCLUSION_REACH))
        result[rows, columns] *= 1 - dark * (index[rows, columns] != number)
    return np.where(seen, result, np.float32(1))


def _sky(scene: Scene, x: Array, y: Array) -> Array:
    """Radiance ``(3, N)`` of rays that hit nothing."""
    r = scene.view.rotation.astype(np.float32)
    up = (r[2, 0] * x + r[2, 1] * y + r[2, 2]) / np.sqrt(x * x + y * y + 1)
    share = np.clip(up, 0, 1) ** np.float32(0.6)
    low, high = (np.array(c, np.float32)[:, None] for c in scene.sky)
    return low + (high - low) * share


def radiance(scene: Scene, height: int, width: int) -> tuple[Array, Array]:
    """Take the picture, without the effects of lens and sensor.

    Args:
        scene: the scene.
        height: H, pixels.
        width: W, pixels.

    Returns:
        Linear RGB radiance ``(3, H, W)`` and depth along the optical axis ``(H, W)``, metres, infinite where
        nothing is hit.
    """
    matrix = scene.lens.matrix(height, width)
    u, v = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    middle = Grid.of(matrix, u, v)
    corner = Grid.of(matrix, np.append(u - 0.5, width - 0.5), np.append(v - 0.5, height - 0.5))
    extent = extents(scene.solids, scene.view)
    hits = [(grid, *cast(scene.solids, scene.view, grid, extent)) for grid in (middle, corner)]
    x = np.concatenate([np.tile(g.x, len(g.y)) for g, _, _ in hits])
    y = np.concatenate([np.repeat(g.y, len(g.x)) for g, _, _ in hits])
    depth = np.concatenate([d.ravel() for _, d, _ in hits])
    index = np.concatenate([i.ravel() for _, _, i in hits])
    order = np.argsort(index, kind="stable")
    missed = int(np.searchsorted(index[order], 0))
    far, near = order[:missed], order[missed:]
    colour = np.empty((3, len(index)), np.float32)
    colour[:, far] = _sky(scene, x[far], y[far])
    pixel = 1.0 / matrix[0, 0]
    surface = _surface(scene, x[near], y[near], depth[near], index[near], pixel)
    toward = surface.point - scene.view.position.astype(np.float32)[:, None]
    toward /= np.sqrt((toward * toward).sum(0))
    colour[:, near] = _light(scene, surface, toward)
    centres = colour[:, : height * width].reshape(3, height, width)
    corners = colour[:, height * width :].reshape(3, height + 1, width + 1)
    around = corners[:, :-1, :-1] + corners[:, 1:, :-1] + corners[:, :-1, 1:] + corners[:, 1:, 1:]
    image = np.float32(0.5) * centres + np.float32(0.125) * around
    image *= _occlusion(scene, middle, hits[0][1], hits[0][2])
    return image, hits[0][1]


def _blur(image: Array, strength: float) -> Array:
    """Three-tap blur of ``(3, H, W)`` along both axes; ``strength`` in [0, 0.25] weighs a neighbour."""
    s = np.float32(strength)
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    image = padded[:, 1:-1] * (1 - 2 * s) + (padded[:, :-2] + padded[:, 2:]) * s
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return padded[:, :, 1:-1] * (1 - 2 * s) + (padded[:, :, :-2] + padded[:, :, 2:]) * s


def develop(image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lens, sensor and tone curve: blur, vignetting, exposure, white balance, noise.

    Args:
        image: ``(3, H, W)`` linear radiance.
        rng: draws the camera's settings and the noise.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    _, height, width = image.shape
    settings = rng.uniform(-1, 1, 6)
    image = _blur(image, 0.05 + 0.04 * float(settings[0]))
    a, b = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    fall = np.float32(0.09 + 0.08 * settings[1])
    image = image * (1 - fall * (a[None] ** 2 + b[:, None] ** 2))
    # Automatic exposure between mean and highlights, times a random error
    bright = float(np.quantile(image[1, ::4, ::4], 0.9))
    level = 0.5 * float(image.mean()) / 0.22 + 0.5 * bright / 0.6
    gain = 2.0 ** (0.35 * settings[2]) / max(level, 1e-4)
    white = np.array([1 + 0.07 * settings[3], 1.0, 1 - 0.07 * settings[3]], np.float32) * np.float32(gain)
    image = image * white[:, None, None]
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + noise * np.sqrt(np.maximum(image, 0) * np.float32(2e-4) + np.float32(4e-6)) * np.float32(
        1 + 0.7 * settings[4]
    )
    # A soft shoulder keeps windows and lamps from burning out
    image = np.maximum(image, 0)
    image = image * (1 + image * np.float32(0.16)) / (1 + image * np.float32(0.75))
    image = np.clip(image * np.float32(1.3), 0, 1) ** np.float32(1 / 2.2)
    return np.ascontiguousarray((image * 255 + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0))
