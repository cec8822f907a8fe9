"""Streets, alleys and yards: rows of houses, pavements, cars, poles and trees under a sky."""

import numpy as np

from sa2depth.scenes.builder import Builder, Dice, Place
from sa2depth.scenes.scene import Lens, Light, Material, Scene, look


def _house(d: Dice) -> Material:
    """A house front: brick or plaster with windows."""
    size = (d.between(1.3, 2.4), d.between(2.6, 3.2))
    phase = d.phase()
    if phase % 3:
        first = d.colour((0.0, 0.09), (0.2, 0.6), (0.35, 0.8))
        grey = d.between(0.2, 0.5)
        return Material(
            "facade", first, (grey, grey, grey * 0.95), d.between(0.07, 0.2), 0.4, phase, size=size
        )
    first = d.colour((0.02, 0.18) if d.chance(0.7) else (0, 1), (0.03, 0.25), (0.6, 0.95))
    r, g, b = (c * 0.8 for c in first)
    return Material("facade", first, (r, g, b), 0.02, 0.15, phase, size=size)


def _blank(d: Dice) -> Material:
    """A wall without windows."""
    kind = d.whole(0, 3)
    if kind == 0:
        return d.surface("noise", (0.05, 0.15), (0.0, 0.2), (0.4, 0.8), (0.02, 0.03), 0.75, 0.2)
    if kind == 1:
        return d.surface("tiles", (0.0, 0.15), (0.05, 0.25), (0.4, 0.75), (0.3, 0.6), 0.5, 0.4)
    return d.surface("bricks", (0.0, 0.09), (0.2, 0.6), (0.35, 0.75), (0.07, 0.2), d.between(0.6, 1.5), 0.45)


def _row(b: Builder, side: int, width: float, far: float) -> None:
    """Houses, walls and hedges along one side (-1 left, +1 right), each with its own setback."""
    d, y = b.dice, -6.0
    while y < far:
        long = d.between(3.0, 7.5)
        back = d.between(0.0, 0.5) if d.chance(0.6) else 0.0
        x = side * (width / 2 + back)
        place = Place(x, y, 0, -np.pi / 2 if side < 0 else np.pi / 2)
        kind = d.whole(0, 9)
        if kind < 7:
            front, roof = _house(d), d.surface("noise", (0.0, 0.1), (0.1, 0.5), (0.3, 0.5), (0.05, 0.05))
            side_wall = _blank(d)
            height = d.between(4.0, 9.0)
            faces = (side_wall, side_wall, front, front, roof, roof)
            b.box(place, (side * long / 2, -3.0, height / 2), (long - 0.02, 6.0, height), faces)
            b.box(place, (side * long / 2, 0.02, 0.2), (long - 0.02, 0.06, 0.4), _blank(d), shadow=False)
            if d.chance(0.7):
                along, tall = d.between(0.2, 0.8) * long, d.between(2.0, 2.3)
                leaf = d.colour((0, 1), (0.2, 0.7), (0.15, 0.7))
                door = Material(
                    "panels", leaf, (0.5, 0.4, 0.2), 0.3, 0.2, d.phase(), 0.1, size=(0.5, tall / 2)
                )
                b.box(place, (side * along, 0.03, tall / 2), (1.0, 0.08, tall), door, shadow=False)
                b.box(place, (side * along, 0.2, 0.08), (1.3, 0.45, 0.16), _blank(d))
                if d.chance(0.5):
                    b.box(place, (side * along, 0.45, tall + 0.25), (1.5, 0.9, 0.06), d.cloth(), tilt=-0.25)
        elif kind < 9:
            height = d.between(1.2, 2.6)
            b.box(place, (side * long / 2, -0.15, height / 2), (long, 0.3, height), _blank(d))
            b.box(place, (side * long / 2, -0.15, height + 0.04), (long, 0.4, 0.08), _blank(d))
            _tree(b, place.shift(side * long / 2, -1.5))
        else:
            hedge = d.surface("leaves", (0.22, 0.33), (0.4, 0.7), (0.25, 0.5), (0.1, 0.2), 0.5, 0.5)
            b.box(place, (side * long / 2, -0.3, 0.75), (long, 0.6, d.between(1.2, 1.8)), hedge)
            _tree(b, place.shift(side * long / 2, -1.5))
        y += long


def _tree(b: Builder, place: Place) -> None:
    d = b.dice
    tall, bark = (
        d.between(1.6, 2.6),
        d.surface("noise", (0.05, 0.1), (0.2, 0.5), (0.2, 0.45), (0.02, 0.03), 0.6, 0.4),
    )
    b.round(place, (0, 0, 0), tall, (0.16, 0.1), bark)
    leaves = d.surface("leaves", (0.16, 0.34), (0.4, 0.75), (0.3, 0.6), (0.2, 0.4), 0.45, 0.55)
    for _ in range(d.whole(2, 3)):
        s = d.between(1.2, 2.2)
        middle = (d.between(-0.5, 0.5), d.between(-0.5, 0.5), tall + d.between(0.1, 1.0))
        b.ball(place, middle, (s, s, s * 0.85), leaves)


def _car(b: Builder, place: Place) -> None:
    """A parked car, 4 metres long, along local y."""
    d = b.dice
    paint = d.surface("plain", (0, 1), (0.0, 0.85), (0.12, 0.9), contrast=0.05, gloss=0.6)
    glass = Material("plain", (0.04, 0.05, 0.06), gloss=0.8)
    rubber, rim = Material("plain", (0.02, 0.02, 0.02)), Material("plain", (0.4, 0.4, 0.42), gloss=0.4)
    long, wide, tall = d.between(3.6, 4.5), d.between(1.65, 1.8), d.between(0.5, 0.62)
    b.box(place, (0, 0, 0.3 + tall / 2), (wide, long, tall), paint)
    cabin, shift = long * d.between(0.48, 0.6), d.between(-0.35, 0.05)
    b.box(place, (0, shift, 0.3 + tall + 0.22), (wide - 0.16, cabin, 0.44), glass)
    b.box(place, (0, shift, 0.3 + tall + 0.46), (wide - 0.2, cabin * 0.82, 0.05), paint)
    b.box(place, (0, shift, 0.3 + tall + 0.22), (wide - 0.13, 0.09, 0.44), paint, shadow=False)
    lamp = Material("plain", (0.75, 0.72, 0.65), gloss=0.6)
    rear = Material("plain", (0.5, 0.03, 0.02), gloss=0.6)
    for x in (-wide / 2 + 0.2, wide / 2 - 0.2):
        b.box(place, (x, long / 2, 0.3 + tall * 0.65), (0.3, 0.03, 0.14), lamp, shadow=False)
        b.box(place, (x, -long / 2, 0.3 + tall * 0.65), (0.25, 0.03, 0.16), rear, shadow=False)
    for x in (-wide / 2 + 0.09, wide / 2 - 0.09):
        for y in (-long * 0.31, long * 0.31):
            # Axles are along local x: the cylinder's axis is tilted down from z in a frame turned sideways
            wheel = place.shift(x, y, 0.31, np.pi / 2)
            b.round(wheel, (0, 0, -0.1), 0.2, (0.31, 0.31), rubber, tilt=np.pi / 2, shadow=False)
            b.round(wheel, (0, 0, -0.105), 0.21, (0.18, 0.18), rim, tilt=np.pi / 2, shadow=False)


def _furniture(b: Builder, width: float, pavement: float, far: float) -> None:
    """Poles, bins, crates, planters and bollards along the pavements."""
    d = b.dice
    for _ in range(d.whole(4, 9)):
        side = 1 if d.chance(0.5) else -1
        place = Place(
            side * (width / 2 - d.between(0.35, max(0.5, pavement))),
            d.between(0.8, far),
            0,
            d.between(0, 6.28),
        )
        if not b.free(place.shift(0, -0.25), 0.5, 0.5, clear=0.8):
            continue
        kind = d.whole(0, 6)
        if kind == 0:
            b.round(place, (0, 0, 0), d.between(3.0, 5.5), (0.07, 0.05), d.metal())
            sign = d.surface("stripes", (0, 1), (0.5, 0.9), (0.4, 0.9), (0.2, 0.5), 0.2)
            b.box(place, (0, 0.07, d.between(2.0, 2.5)), (0.5, 0.03, 0.5), sign)
        elif kind == 1:
            body = d.surface("plain", (0.2, 0.6), (0.1, 0.7), (0.15, 0.5), gloss=0.2)
            b.box(place, (0, 0, 0.5), (0.55, 0.6, 0.9), body)
            b.box(place, (0, 0.03, 0.98), (0.6, 0.68, 0.07), d.metal())
        elif kind == 2:
            b.round(place, (0, 0, 0), 0.45, (0.22, 0.32), _blank(d))
            leaves = d.surface("leaves", (0.2, 0.36), (0.4, 0.7), (0.3, 0.6), (0.1, 0.15), 0.5, 0.5)
            b.ball(place, (0, 0, 0.75), (0.7, 0.7, 0.85), leaves)
        elif kind == 3:
            b.round(place, (0, 0, 0), d.between(0.7, 1.0), (0.09, 0.08), d.metal())
        elif kind == 4 and width > 4 and place.y > 3.0:
            _tree(b, place)
        else:
            for k in range(d.whole(1, 3)):
                s = d.between(0.35, 0.6)
                crate = d.surface("planks", (0.05, 0.11), (0.3, 0.6), (0.4, 0.75), (0.08, 0.12), 0.5, 0.4)
                b.box(place, (0, 0, 0.25 + 0.45 * k), (s, s, 0.45), crate, yaw=d.between(0, 1.5))


def _ground(b: Builder, width: float, pavement: float) -> None:
    d = b.dice
    kind = d.whole(0, 3)
    if kind == 0:
        road = d.surface("bricks", (0.05, 0.12), (0.0, 0.25), (0.35, 0.6), (0.1, 0.18), 0.5, 0.4)
    elif kind == 1:
        road = d.surface("tiles", (0.05, 0.15), (0.0, 0.2), (0.4, 0.7), (0.3, 0.6), 0.55, 0.35)
    else:
        road = d.surface("noise", (0.55, 0.7), (0.0, 0.1), (0.3, 0.55), (0.02, 0.03), 0.75, 0.25)
    b.box(Place(0, 0), (0, 0, -0.5), (300, 300, 1.0), road, shadow=False)
    if pavement > 0:
        flags = d.surface("tiles", (0.05, 0.15), (0.0, 0.15), (0.45, 0.75), (0.3, 0.5), 0.6, 0.25)
        for side in (-1, 1):
            b.box(
                Place(side * (width - pavement) / 2, 20),
                (0, 0, 0.06),
                (pavement, 60, 0.12),
                flags,
                shadow=False,
            )


def build_street(rng: np.random.Generator, max_depth: float) -> Scene:
    """A random street whose size suits the range ``max_depth`` (m); all draws come from ``rng``."""
    d = Dice(rng)
    wide = max_depth > 20
    width = d.between(7.0, 16.0) if wide else d.between(2.6, 6.5)
    far = min(max_depth, 60.0) * d.between(0.55, 1.0)
    lens = Lens(
        1 / (2 * np.tan(np.radians(d.between(56, 66)) / 2)), (d.normal(0.5, 0.006), d.normal(0.5, 0.006))
    )
    eye = (d.between(-0.5, 0.5) * (width - 1.2), 0.0)
    yaw = d.normal(0, np.radians(24)) - 0.12 * eye[0] / width
    if d.chance(0.2):
        yaw = d.between(-1.3, 1.3)
    pitch = d.normal(-7.0, 5.0) if not wide else d.normal(-3.0, 3.0)
    view = look(
        np.array([*eye, d.between(1.2, 1.9)]),
        yaw,
        float(np.radians(pitch)),
        float(np.radians(d.normal(0, 1.5))),
    )
    b = Builder(d, eye, yaw)
    pavement = 0.0 if width < 3.6 else d.between(0.7, 1.5)
    _ground(b, width, pavement)
    # A house closes the end of the street or yard; in one of five it is beyond the range
    end = far if d.chance(0.8) else max_depth + d.between(2.0, 8.0)
    _row(b, -1, width, end)
    _row(b, 1, width, end)
    front = _house(d) if d.chance(0.75) else _blank(d)
    tall = d.between(5.0, 9.0)
    b.box(Place(0, end, 0, d.normal(0, 0.15)), (0, 3.0, tall / 2), (60, 6.0, tall), front)
    lane = width / 2 - pavement - 1.0
    if lane > 0.3:
        for _ in range(d.whole(1, 3) if not wide else d.whole(2, 6)):
            side = 1 if d.chance(0.5) else -1
            place = Place(
                side * lane, d.between(2.5, far), 0, (0 if d.chance(0.5) else np.pi) + d.normal(0, 0.04)
            )
            if b.free(place.shift(0, -2.2), 1.8, 4.4, clear=0.7):
                _car(b, place)
    _furniture(b, width, pavement, far)
    height, azimuth = np.radians(d.between(25, 70)), d.between(0, 2 * np.pi)
    way = np.array([np.cos(height) * np.sin(azimuth), np.cos(height) * np.cos(azimuth), np.sin(height)])
    strength = d.between(0.5, 2.6)
    sun = Light(
        view.position + 120 * way, (strength, strength * 0.93, strength * d.between(0.7, 0.88)), sun=True
    )
    cloud = d.between(0.0, 1.0)
    zenith = (0.25 + 0.45 * cloud, 0.42 + 0.32 * cloud, 0.85)
    ambient = ((0.55, 0.6, 0.68), (0.28, 0.26, 0.24))
    reach = (14.0 if not wide else 40.0) / 120
    return Scene(view, lens, b.solids, [sun], ambient, ((0.85, 0.9, 0.95), zenith), reach)
