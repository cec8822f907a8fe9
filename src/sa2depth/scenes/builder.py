"""Tools to build a scene: local frames, a floor plan without collisions, colours and stock materials."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sa2depth.scenes.scene import Colour, Material, Shape, Solid, Texture, Vector, turn


class Dice:
    """The random draws that make a scene, from one ``np.random.Generator``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        """A uniform random number."""
        return float(self.rng.uniform(low, high))

    def normal(self, middle: float, deviation: float) -> float:
        """A normal random number, clipped at two deviations."""
        return middle + deviation * float(np.clip(self.rng.standard_normal(), -2, 2))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def colour(
        self, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
    ) -> Colour:
        """A linear RGB colour, drawn from ranges of hue, saturation and value as seen on a screen."""
        hsv = (self.between(*hue) % 1.0, self.between(*saturation), self.between(*value))
        r, g, b = (c**2.2 for c in colorsys.hsv_to_rgb(*hsv))
        return (r, g, b)

    def phase(self) -> int:
        """A seed for a pattern."""
        return self.whole(0, 4095)

    def surface(
        self,
        texture: Texture,
        hue: tuple[float, float],
        saturation: tuple[float, float],
        value: tuple[float, float],
        scale: tuple[float, float] = (0.2, 0.2),
        darker: float = 0.6,
        contrast: float = 0.25,
        gloss: float = 0.0,
        size: tuple[float, float] = (1.0, 1.0),
    ) -> Material:
        """A material whose second colour is the first times ``darker``."""
        first = self.colour(hue, saturation, value)
        r, g, b = (min(0.9, c * darker) for c in first)
        period = self.between(*scale)
        return Material(texture, first, (r, g, b), period, contrast, self.phase(), gloss, 0.0, size)

    def wood(self, scale: float = 0.5) -> Material:
        """Furniture wood, from birch to walnut, sometimes painted."""
        if self.chance(0.25):
            return self.surface("plain", (0.0, 1.0), (0.0, 0.35), (0.25, 0.95), gloss=0.15)
        return self.surface(
            "planks",
            (0.05, 0.1),
            (0.3, 0.6),
            (0.3, 0.8),
            (scale, scale),
            0.55,
            0.3,
            gloss=self.between(0, 0.2),
        )

    def cloth(self) -> Material:
        """Upholstery or linen: plain, woven, checked or striped."""
        texture: Texture = ("noise", "noise", "plain", "checks", "stripes")[self.whole(0, 4)]
        scale = {"noise": (0.01, 0.03), "checks": (0.05, 0.15), "stripes": (0.05, 0.2)}.get(
            texture, (0.1, 0.1)
        )
        return self.surface(
            texture,
            (0.0, 1.0),
            (0.05, 0.6),
            (0.25, 0.9),
            scale,
            self.between(0.35, 0.9),
            self.between(0.1, 0.35),
        )

    def metal(self) -> Material:
        """Dark or bright metal."""
        return self.surface("plain", (0.55, 0.65), (0.0, 0.12), (0.15, 0.75), gloss=0.5)


@dataclass(frozen=True, slots=True)
class Place:
    """A frame on the floor: position and heading; local y points away from the object behind it."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def at(self, x: float, y: float, z: float) -> Vector:
        """World position of a local point."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([self.x + c * x - s * y, self.y + s * x + c * y, self.z + z])

    def shift(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> "Place":
        """A frame inside this frame."""
        px, py, pz = self.at(x, y, z).tolist()
        return Place(px, py, pz, self.yaw + yaw)


@dataclass(slots=True)
class Builder:
    """Collects solids and remembers occupied parts of the floor.

    Attributes:
        dice: source of random draws.
        eye: floor position of the camera, kept clear.
        heading: yaw of the camera in radians; more floor is kept clear in front of it.
        solids: the solids built so far.
        taken: occupied circles (x, y, radius) on the floor.
    """

    dice: Dice
    eye: tuple[float, float]
    heading: float
    solids: list[Solid] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)

    def free(self, place: Place, width: float, depth: float, clear: float = 0.35) -> bool:
        """If a footprint (m, from the origin forward) hits neither objects nor camera, take it and return True."""
        short, long = sorted((width, depth))
        count = max(1, round(long / max(short, 0.3)))
        circles = []
        for k in range(count):
            along = ((k + 0.5) / count - 0.5) * long
            x, y, _ = place.at(
                along if width >= depth else 0.0, depth / 2 + (0.0 if width >= depth else along), 0
            )
            circles.append((float(x), float(y), 0.5 * float(np.hypot(short, long / count)) * 0.92))
        for x, y, radius in circles:
            away = float(np.hypot(x - self.eye[0], y - self.eye[1])) + 1e-6
            ahead = (x - self.eye[0]) * np.sin(self.heading) + (y - self.eye[1]) * np.cos(self.heading)
            if away < radius + clear + 0.7 * max(0.0, ahead / away) ** 2:
                return False
            if any(np.hypot(x - a, y - b) < radius + r for a, b, r in self.taken):
                return False
        self.taken += circles
        return True

    def box(
        self,
        place: Place,
        middle: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material | Sequence[Material],
        *,
        yaw: float = 0.0,
        tilt: float = 0.0,
        shadow: bool = True,
    ) -> None:
        """A box of full ``size`` around the local point ``middle``."""
        materials = (material,) if isinstance(material, Material) else tuple(material)
        half = np.maximum(np.array(size) / 2, 1e-3)
        rotation = turn(place.yaw + yaw, tilt)
        self.solids.append(Solid(Shape.BOX, place.at(*middle), half, rotation, materials, shadow=shadow))

    def ball(
        self,
        place: Place,
        middle: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
        *,
        tilt: float = 0.0,
    ) -> None:
        """An ellipsoid of full ``size``."""
        half, rotation = np.array(size) / 2, turn(place.yaw, tilt)
        self.solids.append(Solid(Shape.ELLIPSOID, place.at(*middle), half, rotation, (material,)))

    def round(
        self,
        place: Place,
        foot: tuple[float, float, float],
        height: float,
        radii: tuple[float, float],
        material: Material,
        *,
        shadow: bool = True,
        tilt: float = 0.0,
    ) -> None:
        """A cylinder or truncated cone that stands on the local point ``foot``."""
        half = np.array([max(radii), max(radii), height / 2])
        centre = place.at(foot[0], foot[1], foot[2] + height / 2)
        rotation = turn(place.yaw, tilt)
        self.solids.append(Solid(Shape.FRUSTUM, centre, half, rotation, (material,), radii, shadow))
