"""Procedural surfaces with physical scale: a brick is 7 cm high at any distance, so texture tells depth.

Patterns are functions of surface coordinates ``u, v (N,)`` in metres and of the pixel's footprint there;
edges are smoothed over the footprint and noise is read from a mip pyramid, so that far surfaces do not flicker.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sa2depth.scenes.scene import Array, Colour, Material, Texture

_SIZE = 512  # texels per side of the noise tile
_TEXEL = 0.006  # metres
_LEVELS = 8

Pattern = Callable[[Material, Array, Array, Array], Array]


@cache
def _pyramid() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Flattened mip pyramid of one periodic 1/f noise tile (mean 0, deviation 1), and the starts of its levels."""
    rng = np.random.default_rng(20250101)
    fy, fx = np.fft.fftfreq(_SIZE)[:, None], np.fft.rfftfreq(_SIZE)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((_SIZE, _SIZE)))
    level = np.fft.irfft2(white * np.maximum(radius, 4 / _SIZE) ** -0.9, s=(_SIZE, _SIZE))
    level = np.clip((level - level.mean()) / level.std(), -2.5, 2.5)
    levels, starts, start = [], [], 0
    for _ in range(_LEVELS):
        levels.append(level.astype(np.float32).ravel())
        starts.append(start)
        start += level.size
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
    return np.concatenate(levels), np.array(starts, dtype=np.int32)


@cache
def _tones() -> NDArray[np.float32]:
    """A table of 4096 uniform numbers in [-1, 1] for the cells of patterns."""
    return np.random.default_rng(20250102).uniform(-1, 1, 4096).astype(np.float32)


def noise(u: Array, v: Array, width: Array, phase: int, stretch: tuple[float, float] = (1.0, 1.0)) -> Array:
    """Periodic 1/f noise ``(N,)``, deviation about 1; ``stretch`` > 1 lengthens its grains along u or v."""
    table, starts = _pyramid()
    finest = max(stretch) * _TEXEL
    level = np.log2(np.maximum(width / np.float32(finest), 1)).astype(np.int32)
    np.minimum(level, _LEVELS - 1, out=level)
    ix = np.floor(u * np.float32(1 / (_TEXEL * stretch[0]))).astype(np.int32) + phase * 37
    iy = np.floor(v * np.float32(1 / (_TEXEL * stretch[1]))).astype(np.int32) + phase * 101
    ix &= _SIZE - 1
    iy &= _SIZE - 1
    return table[starts[level] + ((iy >> level) * (_SIZE >> level)) + (ix >> level)]


def _soft(u: Array, v: Array, width: Array, phase: int, stretch: float) -> Array:
    """``noise`` with grains of ``stretch`` texels, interpolated, for patterns seen from near."""
    unit = np.float32(_TEXEL * stretch)
    a, b = u / unit, v / unit
    column, row = np.floor(a), np.floor(b)
    a, b = a - column, b - row
    total = np.zeros_like(u)
    for dx, wx in ((0.5, 1 - a), (1.5, a)):
        for dy, wy in ((0.5, 1 - b), (1.5, b)):
            total += (
                noise((column + dx) * unit, (row + dy) * unit, width, phase, (stretch, stretch)) * wx * wy
            )
    return total


def _cells(ix: Array, iy: Array, phase: int) -> Array:
    """A constant tone in [-1, 1] for each cell ``(N,)``."""
    number = ix.astype(np.int32) * 1619 + iy.astype(np.int32) * 3137 + phase * 521
    return _tones()[(number ^ (number >> 5)) & 4095]


def _inside(distance: NDArray[Any], width: Array) -> Array:
    """Coverage in [0, 1] of a pixel that lies ``distance`` metres inside an edge."""
    return np.clip(np.float32(0.5) + distance / width, 0, 1).astype(np.float32, copy=False)


def _fade(period: float, width: Array) -> Array:
    """1 where a pattern is resolved, 0 where a pixel covers more than a period."""
    return np.clip(2 - 2 * width / np.float32(period), 0, 1)


def _rgb(colour: Colour) -> Array:
    return np.array(colour, dtype=np.float32)[:, None]


def _mix(material: Material, share: Array, tone: Array | float = 0.0) -> Array:
    """From ``colour`` (share 0) to ``second`` (share 1), brightened by a relative ``tone``; ``(3, N)``."""
    first, second = _rgb(material.colour), _rgb(material.second)
    return (first + (second - first) * share) * np.maximum(np.float32(1) + tone, np.float32(0.05))


def _plain(m: Material, u: Array, v: Array, width: Array) -> Array:
    tone = noise(u, v, width, m.phase, (6.0, 6.0)) * np.float32(0.35 * m.contrast)
    return _rgb(m.colour) * (1 + tone)


def _noise(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Carpet, asphalt, plaster, grass: fine grain with patches; ``scale`` is the size of the grain."""
    k = m.scale / _TEXEL
    fine = noise(u, v, width, m.phase, (k, k))
    patch = noise(u, v, width, m.phase + 5, (8.0, 8.0))
    return _mix(
        m, np.clip(0.5 + 0.5 * patch, 0, 1), fine * np.float32(m.contrast) * _fade(8 * m.scale, width)
    )


def _planks(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Boards along u, ``scale`` wide, with grain."""
    row = np.floor(v / m.scale)
    long = 9 * m.scale
    along = u / long + _cells(row, row, m.phase)
    column = np.floor(along)
    tone = _cells(row, column, m.phase + 1)
    grain = noise(u, v + tone, width, m.phase, (14.0, 0.8))
    edge = np.minimum(v / m.scale - row, row + 1 - v / m.scale) * m.scale
    joint = np.minimum(along - column, column + 1 - along) * long
    gap = 1 - np.minimum(_inside(edge - 0.004, width), _inside(joint - 0.004, width))
    dark = gap * np.float32(0.65) * _fade(m.scale, width)
    share = np.clip(0.35 + 0.45 * tone + 0.25 * grain, 0, 1)
    return _mix(m, share * np.float32(2.2 * m.contrast), 0.3 * m.contrast * grain) * (1 - dark)


def _bricks(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Courses ``scale`` high with mortar of the second colour."""
    long = 3.1 * m.scale
    row = np.floor(v / m.scale)
    along = u / long + 0.5 * (row % 2)
    column = np.floor(along)
    tone = _cells(row, column, m.phase)
    edge = np.minimum(v / m.scale - row, row + 1 - v / m.scale) * m.scale
    joint = np.minimum(along - column, column + 1 - along) * long
    mortar = 1 - _inside(np.minimum(edge, joint) - 0.09 * m.scale, width)
    fade = _fade(m.scale, width)
    mortar = mortar * fade + np.float32(0.25) * (1 - fade)
    stain = noise(u, v, width, m.phase, (6.0, 6.0))
    return _mix(m, mortar, (tone * fade * (1 - mortar) + 0.5 * stain) * np.float32(m.contrast))


def _tiles(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Square tiles ``scale`` wide with grout of the second colour."""
    a, b = u / m.scale, v / m.scale
    column, row = np.floor(a), np.floor(b)
    edge = np.minimum(np.minimum(a - column, column + 1 - a), np.minimum(b - row, row + 1 - b)) * m.scale
    grout = (1 - _inside(edge - 0.012 * m.scale - 0.002, width)) * _fade(m.scale, width)
    tone = _cells(column, row, m.phase) + 0.6 * noise(u, v, width, m.phase, (3.0, 3.0))
    return _mix(m, grout, tone * np.float32(0.5 * m.contrast))


def _checks(m: Material, u: Array, v: Array, width: Array) -> Array:
    a, b = u / m.scale, v / m.scale
    column, row = np.floor(a), np.floor(b)
    odd = ((column + row) % 2).astype(np.float32)
    edge = np.minimum(np.minimum(a - column, column + 1 - a), np.minimum(b - row, row + 1 - b)) * m.scale
    own = np.maximum(_inside(edge, width), 0.5) * _fade(m.scale, width) + 0.5 * (1 - _fade(m.scale, width))
    share = odd * own + (1 - odd) * (1 - own)
    return _mix(m, share, noise(u, v, width, m.phase, (2.0, 2.0)) * np.float32(0.3 * m.contrast))


def _stripes(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Upright stripes of period ``scale``."""
    a = u / m.scale
    near = np.abs(a - np.floor(a) - 0.5) * m.scale
    share = _inside(near - 0.25 * m.scale, width) * _fade(m.scale, width)
    share = share + 0.5 * (1 - _fade(m.scale, width))
    return _mix(m, share, noise(u, v, width, m.phase, (2.0, 2.0)) * np.float32(0.25 * m.contrast))


def _marble(m: Material, u: Array, v: Array, width: Array) -> Array:
    k = m.scale / _TEXEL / 24
    vein = np.abs(noise(u, v, width, m.phase, (k, k)))
    cloud = noise(u, v, width, m.phase + 9, (2 * k, 2 * k))
    share = np.clip(1 - vein * 3, 0, 1) * np.float32(0.8)
    return _mix(m, share, cloud * np.float32(0.25 * m.contrast))


def _spectrum(tone: Array) -> Array:
    """Muted colours ``(3, N)`` from a number in [-1, 1] per cell."""
    turn = tone[None] * np.float32(9.0) + np.array([[0.0], [2.1], [4.2]], dtype=np.float32)
    return np.float32(0.22) + np.float32(0.18) * np.sin(turn) + np.float32(0.12) * tone


def _books(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Spines of books from the bottom of the face up; ``scale`` is their thickness, ``size[1]`` the row's height."""
    column = np.floor(u / m.scale + 0.3 * np.sin(u * np.float32(7)))
    tone = _cells(column, column, m.phase)
    top = m.size[1] * (np.float32(0.76) + 0.2 * _cells(column, column, m.phase + 3))
    height = v + np.float32(m.size[1] / 2)
    paper = _spectrum(tone)
    band = _inside(0.012 - np.abs(height - 0.7 * top), width)[None]
    colour = paper + (np.float32(0.55) - paper) * band * np.float32(0.6)
    edge = u / m.scale + 0.3 * np.sin(u * np.float32(7)) - column
    colour = colour * (1 - np.float32(0.5) * (np.minimum(edge, 1 - edge) < 0.1))
    fade = _fade(m.scale, width)
    colour = colour * fade + np.float32(0.22) * (1 - fade)
    return np.where(height < top, colour, _rgb(m.second) * np.float32(0.25))


def _frame(m: Material, u: Array, v: Array, width: Array, bar: float) -> Array:
    """Coverage of a frame ``bar`` metres wide around a face of ``size``."""
    edge = np.minimum(m.size[0] / 2 - np.abs(u), m.size[1] / 2 - np.abs(v))
    return 1 - _inside(edge - np.float32(bar), width)


def _picture(m: Material, u: Array, v: Array, width: Array) -> Array:
    """A framed painting: a horizon, hills and patches of colour."""
    a, b = u / m.size[0], v / m.size[1]
    patch = _soft(u / m.size[0], v / m.size[1], width, m.phase, 6.0)
    hill = _soft(u / m.size[0], np.zeros_like(u), width, m.phase + 2, 5.0) * np.float32(0.15)
    ground = _inside((hill - b) * m.size[1], width)[None]
    land = _spectrum(np.clip(patch * 0.3 + _tones()[m.phase & 4095], -1, 1)) + np.float32(0.1)
    air = _rgb(m.second) * (1 + b + 0.3 * a) + np.float32(0.08) * patch
    inner = ground * land + (1 - ground) * air
    edge = _frame(m, u, v, width, 0.04 + 0.03 * (m.phase % 2))[None]
    return np.clip(inner * (1 - edge) + _rgb(m.colour) * edge, 0.01, 1)


def _window(m: Material, u: Array, v: Array, width: Array) -> Array:
    """A pane with a view (second colour, lighter upwards, something dark below) in a frame with crossbars."""
    bar = _frame(m, u, v, width, 0.06)
    bar = np.maximum(bar, _inside(0.025 - np.abs(u), width))
    if m.phase % 2:
        bar = np.maximum(bar, _inside(0.02 - np.abs(v - 0.15 * m.size[1]), width))
    outline = _soft(u, np.zeros_like(u), width, m.phase, 6.0) * np.float32(0.12 * m.size[1])
    below = _inside(outline - v - 0.18 * m.size[1], width)[None]
    air = _rgb(m.second) * (np.float32(0.85) + 0.3 * v / m.size[1])
    air = air * (1 - below) + below * np.array([[0.16], [0.2], [0.12]], dtype=np.float32)
    return air * (1 - bar) + _rgb(m.colour) * bar


def _facade(m: Material, u: Array, v: Array, width: Array) -> Array:
    """A house wall with rows of windows; ``size`` = (window spacing, storey height), ``scale`` of bricks."""
    wall = _bricks(m, u, v, width) if m.phase % 3 else _noise(m, u, v, width)
    a, b = u / m.size[0] + 0.37 * (m.phase % 7), v / m.size[1]
    column, row = np.floor(a), np.floor(b)
    x, y = (a - column - 0.5) * m.size[0], (b - row - 0.55) * m.size[1]
    w, h = 0.24 * m.size[0] + 0.02 * (m.phase % 5), 0.25 * m.size[1]
    depth = np.minimum(w - np.abs(x), h - np.abs(y))
    opening = _inside(depth, width)[None]
    bars = np.maximum(_inside(0.05 - depth, width), _inside(0.025 - np.abs(x), width))[None]
    tone = _cells(column, row, m.phase)
    sky = np.array([[0.2], [0.25], [0.31]], dtype=np.float32) * (1 + 0.8 * (y / h) * (tone > 0) + 0.5 * tone)
    curtain = (np.abs(x) > w * (0.55 + 0.4 * tone)) & (tone < 0.3)
    sky = np.where(curtain, np.float32(0.45), sky * np.float32(0.6))
    trim = np.float32(0.75 if m.phase % 2 else 0.12)
    pane = sky * (1 - bars) + trim * bars
    sill = (_inside(0.06 - np.abs(y + h + 0.05), width) * _inside(w + 0.08 - np.abs(x), width))[None]
    wall = wall * (1 - sill) + np.float32(0.5) * sill
    return wall * (1 - opening) + pane * opening


def _panels(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Doors and drawers: ``size`` = (width, height) of a panel, each with a groove, a knob and grain."""
    a, b = u / m.size[0], v / m.size[1]
    column, row = np.floor(a), np.floor(b)
    x, y = (a - column - 0.5) * m.size[0], (b - row - 0.5) * m.size[1]
    edge = np.minimum(m.size[0] / 2 - np.abs(x), m.size[1] / 2 - np.abs(y))
    groove = 1 - _inside(edge - 0.008, width)
    inset = _inside(0.006 - np.abs(edge - 0.09 * min(m.size)), width)
    dark = np.maximum(groove * np.float32(0.7), inset * np.float32(0.4)) * _fade(min(m.size), width)
    # The knob is on the side where two doors meet
    hand = np.where(column % 2 == 0, np.float32(0.36 * m.size[0]), np.float32(-0.36 * m.size[0]))
    knob = _inside(0.02 - np.hypot(x - hand, y), width)
    grain = noise(u, v, width, m.phase, (0.8, 14.0))
    colour = _mix(m, np.zeros_like(u), grain * np.float32(0.5 * m.contrast)) * (1 - dark)
    return colour * (1 - knob) + _rgb(m.second) * knob


def _rug(m: Material, u: Array, v: Array, width: Array) -> Array:
    """A woven rug: borders, then stripes or lozenges of period ``scale``."""
    edge = np.minimum(m.size[0] / 2 - np.abs(u), m.size[1] / 2 - np.abs(v))
    border = _inside(0.05 - np.abs(edge - 0.16), width)
    if m.phase % 2:
        wave = np.abs((u / m.scale) % 1 - 0.5) + np.abs((v / m.scale) % 1 - 0.5) - 0.5
    else:
        wave = np.abs((v / m.scale) % 1 - 0.5) * 2 - 0.5
    figure = _inside(wave * np.float32(m.scale / 2), width) * _inside(edge - 0.3, width)
    figure = figure * _fade(m.scale, width)
    share = np.maximum(border, figure)
    return _mix(m, share, noise(u, v, width, m.phase) * np.float32(0.5 * m.contrast))


def _leaves(m: Material, u: Array, v: Array, width: Array) -> Array:
    """Foliage: clumps of light and dark, ``scale`` metres in size."""
    k = m.scale / _TEXEL / 6
    clump = noise(u, v, width, m.phase, (k, k))
    fine = noise(v, u, width, m.phase + 3, (0.4 * k, 0.4 * k))
    tone = np.tanh(clump + 0.7 * fine) * np.float32(m.contrast)
    return _mix(m, np.clip(0.5 + 0.4 * fine, 0, 1), tone)


def _screen(m: Material, u: Array, v: Array, width: Array) -> Array:
    """A display in a dark frame, showing patches of colour or nothing."""
    edge = _frame(m, u, v, width, 0.025)[None]
    patch = _soft(u, v, width, m.phase, 20.0)
    lit = _spectrum(np.clip(patch * 0.4, -1, 1)) + np.float32(0.15) if m.phase % 2 else _rgb(m.second)
    return lit * (1 - edge) + _rgb(m.colour) * edge


_PATTERNS: dict[Texture, Pattern] = {
    "plain": _plain,
    "noise": _noise,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "checks": _checks,
    "stripes": _stripes,
    "marble": _marble,
    "books": _books,
    "picture": _picture,
    "window": _window,
    "facade": _facade,
    "panels": _panels,
    "rug": _rug,
    "leaves": _leaves,
    "screen": _screen,
}


def reflectance(material: Material, u: Array, v: Array, width: Array) -> Array:
    """Linear RGB reflectance ``(3, N)`` of a surface.

    Args:
        material: its pattern and colours.
        u: ``(N,)`` metres along the surface, 0 at the middle of the face.
        v: ``(N,)`` metres across; upwards on upright faces.
        width: ``(N,)`` metres of surface that a pixel covers.
    """
    return _PATTERNS[material.texture](material, u, v, width).astype(np.float32, copy=False)
