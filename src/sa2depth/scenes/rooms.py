"""Rooms: a furnished box of 3 to 7 metres with lamps, windows, doors and pictures."""

from dataclasses import replace

import numpy as np

from sa2depth.scenes import furniture
from sa2depth.scenes.builder import Builder, Dice, Place
from sa2depth.scenes.scene import Lens, Light, Material, Scene, Shape, Solid, look, turn


class _Wall:
    """One of the four walls: places along it, with local y pointing into the room."""

    def __init__(self, room: tuple[float, float, float], side: int) -> None:
        self.yaw = (0.0, np.pi / 2, np.pi, -np.pi / 2)[side]
        self.length = room[0] if side % 2 == 0 else room[1]
        self.depth = (room[1] if side % 2 == 0 else room[0]) / 2
        self.marks: list[tuple[float, float]] = []

    def place(self, along: float) -> Place:
        """The frame at ``along`` metres from the wall's middle."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return Place(float(c * along + s * self.depth), float(s * along - c * self.depth), 0.0, self.yaw)

    def spot(self, dice: Dice, width: float) -> float | None:
        """Middle of a free stretch of wall ``width`` metres long; None if there is none."""
        if width > self.length - 0.2:
            return None
        for _ in range(4):
            limit = (self.length - width) / 2 - 0.1
            along = dice.between(-limit, limit)
            if all(abs(along - a) > (width + w) / 2 + 0.05 for a, w in self.marks):
                self.marks.append((along, width))
                return along
        return None


def _choose(b: Builder, walls: list[_Wall]) -> _Wall:
    """A random wall, usually one that the camera sees."""
    wall = walls[b.dice.whole(0, 3)]
    # A wall at yaw a has its inward normal (-sin a, cos a), the camera looks along (sin h, cos h)
    if np.cos(wall.yaw + b.heading) > 0.3 and b.dice.chance(0.75):
        return walls[b.dice.whole(0, 3)]
    return wall


def _shell(dice: Dice, room: tuple[float, float, float]) -> Solid:
    """Floor, walls and ceiling."""
    kind = dice.whole(0, 5)
    if kind < 3:
        floor = dice.surface(
            "planks",
            (0.05, 0.1),
            (0.25, 0.6),
            (0.35, 0.8),
            (0.08, 0.2),
            0.5,
            0.3,
            gloss=dice.between(0, 0.35),
        )
    elif kind == 3:
        floor = dice.surface(
            "tiles", (0.0, 1.0), (0, 0.2), (0.4, 0.9), (0.2, 0.6), 0.5, 0.25, dice.between(0, 0.5)
        )
    elif kind == 4:
        floor = dice.surface("noise", (0.0, 1.0), (0.05, 0.4), (0.3, 0.75), (0.015, 0.03), 0.8, 0.3)
    else:
        floor = dice.surface(
            "checks", (0.0, 1.0), (0, 0.3), (0.5, 0.9), (0.2, 0.45), dice.between(0.1, 0.5), 0.2
        )
    paint = dice.surface("plain", (0.0, 1.0), (0.0, 0.3), (0.6, 0.95), contrast=0.12)
    walls = [paint] * 4
    kind = dice.whole(0, 5)
    if kind == 0:
        walls = [
            dice.surface("stripes", (0, 1), (0.0, 0.3), (0.6, 0.9), (0.15, 0.5), dice.between(0.6, 0.9), 0.2)
        ] * 4
    elif kind == 1:
        other = dice.surface("bricks", (0.0, 0.07), (0.3, 0.6), (0.4, 0.75), (0.065, 0.09), 1.4, 0.35)
        walls[dice.whole(0, 3)] = other
    elif kind == 2:
        walls[dice.whole(0, 3)] = dice.surface("plain", (0, 1), (0.2, 0.55), (0.35, 0.8), contrast=0.15)
    elif kind == 3:
        walls = [dice.surface("tiles", (0, 1), (0, 0.2), (0.7, 0.95), (0.12, 0.3), 0.6, 0.15, 0.2)] * 4
    ceiling = dice.surface("plain", (0.1, 0.15), (0, 0.06), (0.85, 0.97), contrast=0.08)
    half, centre = np.array(room) / 2, np.array([0, 0, room[2] / 2])
    return Solid(Shape.INTERIOR, centre, half, turn(0.0), (*walls, floor, ceiling), shadow=False)


def _openings(b: Builder, walls: list[_Wall], height: float, day: float) -> list[tuple[Place, float]]:
    """Doors and windows; returns the windows (place, area) for the light that they let in."""
    d, windows = b.dice, []
    for _ in range(d.whole(0, 2)):
        wall, width = _choose(b, walls), d.between(0.8, 0.95)
        along = wall.spot(d, width + 0.1)
        if along is None:
            continue
        place, frame = wall.place(along), d.wood(0.5)
        leaf = d.wood().colour
        door = Material("panels", leaf, leaf, 0.3, 0.2, d.phase(), 0.1, 0.0, (width / 2, 1.01))
        b.box(place, (0, 0.02, 1.04), (width + 0.14, 0.04, 2.1), frame, shadow=False)
        b.box(place, (0, 0.03, 1.01), (width, 0.05, 2.02), door, shadow=False)
        b.ball(place, (width * (0.42 if d.chance(0.5) else -0.42), 0.08, 1.03), (0.07, 0.07, 0.07), d.metal())
        b.taken.append((*place.at(0, 0.4, 0)[:2].tolist(), 0.35))
    for _ in range(d.whole(0, 2)):
        wall, width = _choose(b, walls), d.between(0.8, 2.0)
        along = wall.spot(d, width + 0.2)
        if along is None:
            continue
        tall = d.between(0.9, min(1.5, height - 1.05))
        place, low = wall.place(along), min(0.9, height - tall - 0.15)
        air = d.colour((0.52, 0.62), (0.03, 0.35), (0.75, 1.0))
        pane = Material("window", furniture.WHITE, air, phase=d.phase(), glow=day, size=(width, tall))
        b.box(place, (0, 0.02, low + tall / 2), (width, 0.04, tall), pane, shadow=False)
        b.box(place, (0, 0.08, low - 0.02), (width + 0.1, 0.16, 0.04), Material("plain", furniture.WHITE))
        windows.append((place.shift(0, 0.3, low + tall / 2), width * tall))
        if d.chance(0.5):
            cloth, drop = d.cloth(), low + tall + 0.1
            cloth = replace(cloth, texture="stripes", scale=0.12)
            for x in (-width / 2 - 0.1, width / 2 + 0.1):
                b.box(place, (x, 0.12, drop / 2 + 0.05), (d.between(0.2, 0.4), 0.1, drop - 0.1), cloth)
        if d.chance(0.4):
            b.box(
                place,
                (0, 0.08, 0.42),
                (width * 0.8, 0.1, 0.55),
                Material("stripes", (0.7, 0.7, 0.7), (0.4, 0.4, 0.4), 0.06),
            )
    return windows


def _pictures(b: Builder, walls: list[_Wall], height: float) -> None:
    d = b.dice
    for _ in range(d.whole(2, 5)):
        wall, width = _choose(b, walls), d.between(0.35, 1.2)
        along = wall.spot(d, width)
        if along is None:
            continue
        tall = d.between(0.35, 0.9)
        frame = d.colour((0.05, 0.12), (0.0, 0.6), (0.08, 0.9))
        air = d.colour((0, 1), (0.1, 0.5), (0.5, 0.95))
        art = Material("picture", frame, air, phase=d.phase(), size=(width, tall))
        place = wall.place(along)
        middle = min(d.between(1.45, 1.7), height - tall / 2 - 0.1)
        b.box(place, (0, 0.015, middle), (width, 0.03, tall), art, shadow=False)


def _against_walls(b: Builder, walls: list[_Wall], height: float) -> None:
    """Furniture with its back to a wall."""
    d = b.dice
    for _ in range(d.whole(6, 12)):
        if len(b.solids) > 50:
            return
        kind = d.whole(0, 8)
        tall = d.between(0.7, 1.1) if d.chance(0.5) else d.between(1.7, min(2.2, height - 0.1))
        width, depth = (
            (2.0, 0.95), (1.7, 2.1), (d.between(0.6, 1.8), d.between(0.4, 0.6)), (1.3, 0.36),
            (1.5, 0.75), (1.8, 0.45), (0.45, 0.45), (0.5, 0.5), (0.6, 0.6),
        )[kind]  # fmt: skip
        wall = _choose(b, walls)
        limit = (wall.length - width) / 2 - 0.05
        if limit <= 0:
            continue
        along = d.between(-limit, limit)
        if d.chance(0.3):
            along = limit if d.chance(0.5) else -limit
        place = wall.place(along).shift(0, 0.02)
        if not b.free(place, width, depth):
            continue
        wall.marks.append((along, width * (1.0 if kind in (2, 3, 5) else 0.0)))
        if kind == 2:
            furniture.cabinet(b, place, width, depth, tall)
            if tall < 1.2:
                furniture.clutter(
                    b, place.shift(0, depth / 2, tall), width * 0.35, depth * 0.25, d.whole(0, 3)
                )
            continue
        (
            furniture.sofa, furniture.bed, furniture.sofa, furniture.shelves, furniture.desk,
            furniture.television, furniture.lamp, furniture.plant, furniture.stuff,
        )[kind](b, place)  # fmt: skip


def _in_the_middle(b: Builder, room: tuple[float, float, float]) -> None:
    """Rugs, dining and coffee tables, loose things."""
    d = b.dice
    if d.chance(0.5):
        width, depth = d.between(1.2, 0.6 * room[0]), d.between(1.0, 0.6 * room[1])
        rug = d.surface(
            "rug", (0, 1), (0.1, 0.7), (0.2, 0.85), (0.15, 0.5), d.between(0.2, 0.7), size=(width, depth)
        )
        spot = Place(d.between(-0.15, 0.15) * room[0], d.between(-0.15, 0.15) * room[1], 0, d.normal(0, 0.1))
        b.box(spot, (0, 0, 0.006), (width, depth, 0.012), rug, shadow=False)
    for _ in range(d.whole(2, 6)):
        if len(b.solids) > 54:
            return
        place = Place(
            d.between(-0.5, 0.5) * (room[0] - 1.4),
            d.between(-0.5, 0.5) * (room[1] - 1.4),
            0,
            d.between(0, 6.28),
        )
        kind = d.whole(0, 4)
        if kind == 0 and min(room[:2]) > 3.6:
            if b.free(place.shift(0, -0.45), 1.6, 1.7):
                furniture.dining(b, place)
        elif kind == 1:
            if b.free(place, 1.0, 0.6):
                furniture.table(
                    b, place, d.between(0.7, 1.1), d.between(0.45, 0.65), d.between(0.35, 0.5), d.wood(0.12)
                )
        elif kind == 2:
            if b.free(place, 1.6, 0.9):
                furniture.sofa(b, place)
        elif b.free(place, 0.5, 0.5):
            furniture.stuff(b, place)


def _lamps(
    b: Builder, room: tuple[float, float, float], windows: list[tuple[Place, float]], day: float
) -> list[Light]:
    """A ceiling lamp (the main light), the windows as soft lamps, sometimes another lamp."""
    d = b.dice
    x, y = d.between(-0.25, 0.25) * room[0], d.between(-0.25, 0.25) * room[1]
    drop = d.between(0.05, 0.6)
    warm = d.between(0.55, 0.95)
    lights = []
    strength = d.between(1.2, 3.2) * room[0] * room[1] / 16
    lights.append(
        Light(
            np.array([x, y, room[2] - drop - 0.12]), (strength, strength * (0.5 + warm / 2), strength * warm)
        )
    )
    shade = Material("plain", (0.9, 0.87, 0.8), glow=d.between(0.8, 2.0))
    place = Place(x, y)
    # Not so near the camera that the shade fills the picture
    if np.hypot(x - b.eye[0], y - b.eye[1]) > 0.8:
        b.round(
            place,
            (0, 0, room[2] - drop - 0.1),
            0.12 if drop > 0.2 else 0.08,
            (0.2, 0.14),
            shade,
            shadow=False,
        )
        b.box(place, (0, 0, room[2] - drop / 2), (0.02, 0.02, drop), d.metal(), shadow=False)
    for window, area in windows:
        power = day * area * d.between(0.7, 1.4)
        lights.append(Light(window.at(0, 0, 0), (power * 0.9, power * 0.97, power * 1.05)))
    return lights


def _ahead(room: tuple[float, float, float], eye: tuple[float, ...], yaw: float) -> float:
    """Metres from the camera to the wall it faces."""
    ways = ((np.sin(yaw), eye[0], room[0] / 2), (np.cos(yaw), eye[1], room[1] / 2))
    return min(float((half - np.sign(way) * start) / max(abs(way), 1e-6)) for way, start, half in ways)


def build_room(rng: np.random.Generator) -> Scene:
    """A random furnished room; all draws come from ``rng``."""
    d = Dice(rng)
    room = (d.between(3.0, 7.0), d.between(3.0, 7.0), d.between(2.3, 3.1))
    lens = Lens(
        1 / (2 * np.tan(np.radians(d.between(56, 66)) / 2)), (d.normal(0.5, 0.006), d.normal(0.5, 0.006))
    )
    height = d.between(0.8, min(1.8, room[2] - 0.4))
    # Usually from the edge into the room, as people take pictures
    angle, edge = d.between(0, 2 * np.pi), d.between(0.35, 1.0) ** 0.5
    eye = tuple(
        float(np.clip(1.2 * edge * f(angle), -1, 1)) * (s / 2 - 0.45)
        for f, s in ((np.sin, room[0]), (np.cos, room[1]))
    )
    target = (d.between(-0.4, 0.4) * room[0], d.between(-0.4, 0.4) * room[1])
    yaw = float(np.arctan2(target[0] - eye[0], target[1] - eye[1])) + d.normal(0, 0.15)
    if d.chance(0.25):
        yaw = d.between(0, 2 * np.pi)
    # Nothing can be learned from a bare wall at arm's length: turn further, except in one view of ten
    if d.chance(0.9):
        for _ in range(8):
            if _ahead(room, eye, yaw) > 2.7:
                break
            yaw += 0.7
    pitch = np.radians(d.normal(-7.0 - 6.0 * (height - 1.3), 6.0))
    view = look(np.array([*eye, height]), yaw, float(pitch), float(np.radians(d.normal(0, 2.0))))
    b = Builder(d, (eye[0], eye[1]), yaw)
    b.solids.append(_shell(d, room))
    walls = [_Wall(room, side) for side in range(4)]
    day = d.between(0.4, 2.5)
    windows = _openings(b, walls, room[2], day)
    _against_walls(b, walls, room[2])
    _in_the_middle(b, room)
    _pictures(b, walls, room[2])
    if d.chance(0.7):
        skirt = Material("plain", d.wood().colour)
        for wall in walls:
            b.box(wall.place(0), (0, 0.01, 0.045), (wall.length, 0.02, 0.09), skirt, shadow=False)
    lights = _lamps(b, room, windows, day)
    soft = d.between(0.2, 0.5)
    ambient = ((soft, soft, soft * 1.03), (soft * 0.75, soft * 0.7, soft * 0.62))
    return Scene(view, lens, b.solids, lights, ambient)
