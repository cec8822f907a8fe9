"""Objects in rooms; each function builds one at a place, its back at local y = 0."""

from sa2depth.scenes.builder import Builder, Place
from sa2depth.scenes.scene import Material

WHITE = (0.75, 0.75, 0.73)


def table(b: Builder, place: Place, width: float, depth: float, height: float, top: Material) -> None:
    """A table top on four legs or a pedestal."""
    d = b.dice
    leg = d.wood() if d.chance(0.5) else d.metal()
    b.box(place, (0, depth / 2, height - 0.02), (width, depth, 0.04), top)
    if d.chance(0.25):
        b.round(place, (0, depth / 2, 0), height - 0.04, (0.05, 0.05), leg)
        b.round(place, (0, depth / 2, 0), 0.04, (0.28, 0.2), leg)
        return
    for x in (-width / 2 + 0.06, width / 2 - 0.06):
        for y in (0.06, depth - 0.06):
            b.box(place, (x, y, (height - 0.04) / 2), (0.055, 0.055, height - 0.04), leg)


def chair(b: Builder, place: Place, material: Material, cloth: Material) -> None:
    """A chair 45 cm wide; its back is at local y = 0."""
    b.box(place, (0, 0.24, 0.45), (0.44, 0.44, 0.05), cloth)
    b.box(place, (0, 0.03, 0.74), (0.42, 0.035, 0.34), material)
    for x in (-0.19, 0.19):
        b.box(place, (x, 0.03, 0.34), (0.04, 0.04, 0.68), material)
        b.box(place, (x, 0.43, 0.21), (0.04, 0.04, 0.43), material)


def dining(b: Builder, place: Place) -> None:
    """A table with chairs around and something on it."""
    d = b.dice
    width, depth = d.between(1.1, 1.8), d.between(0.75, 0.95)
    table(b, place, width, depth, d.between(0.72, 0.77), d.wood(0.12))
    seat, cloth = d.wood(), d.cloth()
    for x, y, yaw in (
        (-0.3, depth + 0.35, 3.14),
        (0.3, depth + 0.35, 3.14),
        (-0.3, -0.35, 0),
        (0.3, -0.35, 0),
    ):
        if d.chance(0.6):
            chair(
                b,
                place.shift(x * width + d.between(-0.1, 0.1), y, 0, yaw + d.between(-0.4, 0.4)),
                seat,
                cloth,
            )
    clutter(b, place.shift(0, depth / 2, 0.77), width * 0.35, depth * 0.3, d.whole(1, 3))


def sofa(b: Builder, place: Place) -> None:
    """A sofa or armchair with cushions."""
    d = b.dice
    width, cloth = d.between(0.9, 2.2), d.cloth()
    b.box(place, (0, 0.45, 0.24), (width, 0.85, 0.36), cloth)
    b.box(place, (0, 0.13, 0.56), (width, 0.22, d.between(0.45, 0.65)), cloth, tilt=0.1)
    for x in (-width / 2 + 0.09, width / 2 - 0.09):
        b.box(place, (x, 0.45, 0.32), (0.19, 0.86, 0.6), cloth)
    pillow = d.cloth()
    for _ in range(d.whole(0, 3)):
        b.ball(place, (d.between(-0.35, 0.35) * width, 0.34, 0.58), (0.44, 0.2, 0.4), pillow, tilt=0.3)


def bed(b: Builder, place: Place) -> None:
    """A bed with its headboard at the back."""
    d = b.dice
    width, long, wood = d.between(0.95, 1.8), d.between(1.95, 2.1), d.wood()
    b.box(place, (0, long / 2, 0.2), (width, long, 0.22), wood)
    b.box(
        place,
        (0, long / 2, 0.4),
        (width - 0.06, long - 0.06, 0.2),
        d.surface("noise", (0, 1), (0, 0.1), (0.8, 0.95)),
    )
    b.box(place, (0, long * 0.62, 0.44), (width + 0.02, long * 0.72, 0.22), d.cloth())
    b.box(place, (0, 0.03, 0.5), (width + 0.06, 0.06, d.between(0.8, 1.2)), wood)
    linen = d.surface("plain", (0, 1), (0, 0.2), (0.75, 0.95))
    for x in (-0.25, 0.25) if width > 1.3 else (0.0,):
        b.ball(place, (x * width, 0.33, 0.56), (0.6, 0.42, 0.2), linen)


def cabinet(b: Builder, place: Place, width: float, depth: float, height: float) -> None:
    """A wardrobe or chest with doors or drawers on its front."""
    d = b.dice
    wood = d.wood(0.4)
    columns = max(1, round(width / d.between(0.45, 0.6)))
    rows = 1 if height > 1.4 else d.whole(1, 4)
    front = Material(
        "panels",
        wood.colour,
        d.metal().colour,
        0.3,
        0.25,
        d.phase(),
        0.1,
        0.0,
        (width / columns, height / rows),
    )
    # The pattern counts from the middle of the face: an odd number of panels would be cut in half there
    if columns % 2 or rows % 2:
        front = Material(
            "panels", wood.colour, front.second, 0.3, 0.25, front.phase, 0.1, 0.0,
            (width / 2 if columns % 2 else front.size[0], height / 2 if rows % 2 else front.size[1]),
        )  # fmt: skip
    b.box(place, (0, depth / 2, height / 2), (width, depth, height), (wood, wood, wood, front, wood, wood))


def shelves(b: Builder, place: Place) -> None:
    """A bookcase: boards, sides and rows of books."""
    d = b.dice
    width, depth, height = d.between(0.7, 1.4), d.between(0.26, 0.36), d.between(1.1, 2.1)
    wood = d.wood(0.4)
    rows = max(3, round(height / 0.36))
    step = height / rows
    for x in (-width / 2, width / 2):
        b.box(place, (x, depth / 2, height / 2), (0.03, depth, height), wood)
    b.box(place, (0, 0.01, height / 2), (width, 0.02, height), wood)
    for row in range(rows + 1):
        b.box(place, (0, depth / 2, max(0.03, row * step)), (width, depth, 0.025), wood)
        if row < rows and d.chance(0.75):
            long = width * d.between(0.55, 1.0) - 0.04
            tall = step - 0.04
            books = Material(
                "books", wood.colour, wood.colour, d.between(0.025, 0.045), 0.3, d.phase(), size=(long, tall)
            )
            deep, left = (
                d.between(0.16, depth - 0.03),
                (width - 0.04 - long) / 2 * (1 if d.chance(0.5) else -1),
            )
            b.box(
                place,
                (left, deep / 2, row * step + 0.01 + tall / 2),
                (long, deep, tall * 0.93),
                books,
                shadow=False,
            )


def desk(b: Builder, place: Place) -> None:
    """A desk with a screen and a chair."""
    d = b.dice
    width, depth = d.between(1.1, 1.6), d.between(0.6, 0.8)
    table(b, place, width, depth, 0.74, d.wood(0.15))
    dark, x = d.metal(), d.between(-0.25, 0.25) * width
    w, h = d.between(0.45, 0.7), d.between(0.28, 0.4)
    screen = Material(
        "screen", (0.02, 0.02, 0.02), (0.03, 0.035, 0.04), phase=d.phase(), glow=0.8, size=(w, h), gloss=0.3
    )
    b.box(place, (x, 0.2, 0.86 + h / 2), (w, 0.04, h), (dark, dark, dark, screen, dark, dark))
    b.round(place, (x, 0.2, 0.74), 0.14, (0.09, 0.03), dark)
    clutter(b, place.shift(-x, depth / 2, 0.74), 0.3, 0.15, d.whole(1, 3))
    if d.chance(0.75):
        chair(
            b,
            place.shift(d.between(-0.2, 0.2), depth + 0.55, 0, 3.14 + d.between(-0.7, 0.7)),
            d.metal(),
            d.cloth(),
        )


def television(b: Builder, place: Place) -> None:
    """A low board with a television."""
    d = b.dice
    width, height = d.between(1.2, 1.9), d.between(0.38, 0.55)
    cabinet(b, place, width, 0.42, height)
    w = d.between(0.8, 1.25)
    h = w * 0.58
    dark = Material("plain", (0.015, 0.015, 0.015), gloss=0.3)
    screen = Material(
        "screen", (0.01, 0.01, 0.01), (0.015, 0.017, 0.02), phase=d.phase(), glow=0.6, size=(w, h), gloss=0.5
    )
    b.box(place, (0, 0.2, height + 0.07 + h / 2), (w, 0.05, h), (dark, dark, dark, screen, dark, dark))
    b.box(place, (0, 0.2, height + 0.035), (0.4, 0.2, 0.07), dark)


def lamp(b: Builder, place: Place) -> None:
    """A floor lamp."""
    d = b.dice
    height = d.between(1.3, 1.7)
    b.round(place, (0, 0.2, 0), 0.03, (0.15, 0.14), d.metal())
    b.round(place, (0, 0.2, 0), height, (0.015, 0.015), d.metal())
    shade = d.surface("plain", (0.08, 0.14), (0.1, 0.4), (0.8, 0.95))
    lit = Material("plain", shade.colour, phase=shade.phase, glow=d.between(0.2, 1.6))
    b.round(place, (0, 0.2, height), 0.28, (0.22, 0.13), lit, shadow=False)


def plant(b: Builder, place: Place) -> None:
    """A pot with foliage."""
    d = b.dice
    pot = d.between(0.25, 0.4)
    b.round(
        place,
        (0, 0.22, 0),
        pot,
        (0.11, 0.17),
        d.surface("noise", (0.0, 0.1), (0.1, 0.6), (0.3, 0.8), (0.02, 0.02)),
    )
    leaves = d.surface("leaves", (0.22, 0.36), (0.4, 0.7), (0.25, 0.55), (0.1, 0.2), 0.45, 0.5)
    for _ in range(d.whole(2, 4)):
        s = d.between(0.3, 0.6)
        middle = (d.between(-0.14, 0.14), 0.22 + d.between(-0.1, 0.14), pot + d.between(0.15, 0.7))
        b.ball(place, middle, (s * 0.8, s * 0.8, s * 1.2), leaves, tilt=d.between(-0.5, 0.5))


def clutter(b: Builder, place: Place, spread_x: float, spread_y: float, count: int) -> None:
    """Small things on a surface: books, boxes, vases, bowls, balls."""
    d = b.dice
    for _ in range(count):
        x, y = d.between(-spread_x, spread_x), d.between(-spread_y, spread_y)
        material = d.surface(
            ("plain", "stripes", "checks", "noise")[d.whole(0, 3)], (0, 1), (0.1, 0.8), (0.2, 0.95),
            (0.02, 0.06), d.between(0.2, 0.9), gloss=d.between(0, 0.5),
        )  # fmt: skip
        kind = d.whole(0, 3)
        if kind == 0:
            size = (d.between(0.12, 0.3), d.between(0.1, 0.25), d.between(0.03, 0.2))
            b.box(place, (x, y, size[2] / 2), size, material, yaw=d.between(0, 3.1))
        elif kind == 1:
            b.round(
                place,
                (x, y, 0),
                d.between(0.12, 0.32),
                (d.between(0.03, 0.07), d.between(0.03, 0.1)),
                material,
            )
        elif kind == 2:
            size_m = d.between(0.08, 0.2)
            b.ball(place, (x, y, size_m / 2), (size_m, size_m, size_m), material)
        else:
            b.round(place, (x, y, 0), 0.07, (0.05, 0.13), material)


def stuff(b: Builder, place: Place) -> None:
    """Something loose on the floor: a crate, a ball, a stool, a basket."""
    d = b.dice
    material = d.cloth() if d.chance(0.5) else d.wood(0.1)
    kind, s = d.whole(0, 3), d.between(0.25, 0.55)
    if kind == 0:
        b.box(place, (0, 0.25, s / 2), (s * d.between(0.7, 1.4), s, s), material, yaw=d.between(0, 3.1))
    elif kind == 1:
        b.ball(
            place,
            (0, 0.25, s / 2),
            (s, s, s),
            d.surface("stripes", (0, 1), (0.3, 0.8), (0.4, 0.9), (0.1, 0.3), 0.3),
        )
    elif kind == 2:
        b.round(place, (0, 0.25, 0), s, (s * 0.4, s * 0.4), material)
    else:
        b.round(place, (0, 0.25, 0), s, (s * 0.35, s * 0.5), material)
