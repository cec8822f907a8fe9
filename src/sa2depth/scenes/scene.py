"""The parts of a synthetic scene: solids, materials, lights, a sky and a camera.

World axes: x east, y north, z up, metres. Camera axes: x right, y down, z forward (the pinhole convention).
"""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Vector = NDArray[np.float64]
Colour = tuple[float, float, float]

Texture = Literal[
    "plain", "noise", "planks", "bricks", "tiles", "checks", "stripes", "marble", "books", "picture",
    "window", "facade", "panels", "rug", "leaves", "screen",
]  # fmt: skip


class Shape(IntEnum):
    """Kinds of solid; ray hits are computed analytically."""

    INTERIOR = 0  # a box seen from inside: floor, ceiling and walls of a room
    BOX = 1
    ELLIPSOID = 2
    FRUSTUM = 3  # cylinder or truncated cone about the local z axis


@dataclass(frozen=True, slots=True)
class Material:
    """A procedural surface, anchored in object space.

    Attributes:
        texture: name of the pattern (see ``textures``).
        colour: first colour, linear RGB reflectance in [0, 1].
        second: second colour (mortar, veins, other squares ...).
        scale: period of the pattern in metres.
        contrast: strength of the tone variation between and inside the pattern's cells.
        phase: shifts and reseeds the pattern.
        gloss: strength of the highlight of the main light, 0 = matt.
        glow: radiance added, as a multiple of the reflectance (lamps, screens, window panes).
        size: extent (width, height) in metres for patterns that fill a face (pictures, windows, rugs).
    """

    texture: Texture
    colour: Colour
    second: Colour = (0.1, 0.1, 0.1)
    scale: float = 0.2
    contrast: float = 0.2
    phase: int = 0
    gloss: float = 0.0
    glow: float = 0.0
    size: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Solid:
    """One convex solid (or the inside of a box).

    Attributes:
        shape: its kind.
        centre: ``(3,)`` world position, m.
        half: ``(3,)`` half extents along its own axes, m (semi-axes of an ellipsoid, bounds of a frustum).
        rotation: ``(3, 3)`` world from local.
        materials: one for all faces, or six in the order -x, +x, -y, +y, -z, +z.
        radii: lower and upper radius of a frustum, m.
        shadow: True if it casts a shadow from the main light.
    """

    shape: Shape
    centre: Vector
    half: Vector
    rotation: Vector
    materials: tuple[Material, ...]
    radii: tuple[float, float] = (0.0, 0.0)
    shadow: bool = True


@dataclass(frozen=True, slots=True)
class Light:
    """A lamp or the sun.

    Attributes:
        position: ``(3,)`` world position, m (far away for the sun).
        power: RGB irradiance at one metre; for the sun the irradiance anywhere.
        sun: no falloff with distance.
    """

    position: Vector
    power: Colour
    sun: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The place of a pinhole camera.

    Attributes:
        position: ``(3,)`` world position, m.
        rotation: ``(3, 3)`` world from camera; columns are right, down, forward.
    """

    position: Vector
    rotation: Vector


@dataclass(frozen=True, slots=True)
class Lens:
    """Resolution-free intrinsics: multiply by the image size to get pixels.

    Attributes:
        focal: focal length as a share of the image width.
        centre: principal point as a share of width and height.
    """

    focal: float
    centre: tuple[float, float] = (0.5, 0.5)

    def matrix(self, height: int, width: int) -> Vector:
        """Intrinsics ``(3, 3)`` in px; the centre of the first pixel is (0, 0), pixels are square."""
        focal_px = self.focal * width
        u, v = self.centre[0] * width - 0.5, self.centre[1] * height - 0.5
        return np.array([[focal_px, 0.0, u], [0.0, focal_px, v], [0.0, 0.0, 1.0]])


@dataclass(slots=True)
class Scene:
    """Everything needed to take a picture.

    Attributes:
        view: the camera's place.
        lens: the camera's intrinsics.
        solids: all objects.
        lights: lamps; the first is the main one and casts shadows.
        ambient: light from above and from below, RGB.
        sky: colours at the horizon and at the zenith, RGB radiance.
        shadow_reach: half extent of the shadow map, as tangent of the angle at the main light.
    """

    view: View
    lens: Lens
    solids: list[Solid] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    ambient: tuple[Colour, Colour] = ((0.3, 0.3, 0.3), (0.2, 0.2, 0.2))
    sky: tuple[Colour, Colour] = ((0.8, 0.85, 0.9), (0.35, 0.5, 0.85))
    shadow_reach: float = 3.5


def turn(yaw: float, tilt: float = 0.0) -> Vector:
    """Rotation ``(3, 3)`` by ``yaw`` about z after ``tilt`` about x, radians."""
    c, s, ct, st = math.cos(yaw), math.sin(yaw), math.cos(tilt), math.sin(tilt)
    return np.array([[c, -s * ct, s * st], [s, c * ct, -c * st], [0.0, st, ct]])


def look(position: Vector, yaw: float, pitch: float = 0.0, roll: float = 0.0) -> View:
    """A view from ``position``: ``yaw`` 0 is north and grows to the east; ``pitch`` up, ``roll`` clockwise."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    forward = np.array([sy * cp, cy * cp, sp])
    right = np.array([cy, -sy, 0.0])
    down = np.cross(forward, right)
    axes = np.stack([cr * right + sr * down, cr * down - sr * right, forward], axis=1)
    return View(np.asarray(position, dtype=np.float64), axes)
