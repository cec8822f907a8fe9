"""Synthetic scenes are reproducible, exact in depth and sane in range."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from sa2depth.errors import ConfigError
from sa2depth.scenes import SyntheticScenes
from sa2depth.scenes.raycast import Grid, cast
from sa2depth.scenes.scene import Lens, Light, Material, Scene, Shape, Solid, look, turn
from sa2depth.scenes.shading import radiance
from sa2depth.scenes.textures import _PATTERNS, reflectance

PAINT = (Material("plain", (0.5, 0.5, 0.5)),)
VIEW = look(np.zeros(3), 0.0)  # world (x, y, z) is camera (x, -z, y)
LENS = Lens(0.9)
MATRIX = LENS.matrix(48, 64)
PIXELS = Grid.of(MATRIX, np.arange(64.0), np.arange(48.0))


def digest(sample):
    return hashlib.sha256(
        sample.image.tobytes() + sample.depth.tobytes() + sample.intrinsics.tobytes() + sample.id.encode()
    ).hexdigest()


def solid(shape, centre, half, rotation=None, **more):
    rotation = turn(0.0) if rotation is None else rotation
    return Solid(shape, np.array(centre, float), np.array(half, float), rotation, PAINT, **more)


def world_points(scene, depth, height, width):
    matrix = scene.lens.matrix(height, width)
    v, u = np.indices((height, width))
    rays = np.stack(
        [(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1], np.ones(u.shape)], -1
    )
    return (rays * depth[..., None].astype(np.float64)) @ scene.view.rotation.T + scene.view.position


@pytest.mark.parametrize("kind", ["mixed", "rooms", "streets"])
def test_a_number_is_always_the_same_scene(kind):
    one = SyntheticScenes(6, 3, 32, 40, kind)
    order = [digest(one[i]) for i in (5, 2, 0)]
    assert order == [digest(SyntheticScenes(6, 3, 32, 40, kind)[i]) for i in (5, 2, 0)]
    assert order == [digest(SyntheticScenes(1, 3, 32, 40, kind, offset=i, cache=False)[0]) for i in (5, 2, 0)]


def test_another_process_makes_the_same_scenes():
    code = (
        "import hashlib; from sa2depth.scenes import SyntheticScenes as S; s = S(2, 7, 32, 40)\n"
        "for i in (1, 0):\n"
        "    x = s[i]\n"
        "    print(hashlib.sha256(x.image.tobytes() + x.depth.tobytes() + x.intrinsics.tobytes()"
        " + x.id.encode()).hexdigest())\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONHASHSEED": "99", "OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    scenes = SyntheticScenes(2, 7, 32, 40)
    assert run.stdout.split() == [digest(scenes[1]), digest(scenes[0])]


def test_seeds_and_numbers_differ():
    samples = [SyntheticScenes(4, seed, 32, 40)[i] for seed in (0, 1) for i in range(4)]
    assert len({digest(s) for s in samples}) == len({s.id for s in samples}) == 8
    assert len({s.depth.tobytes() for s in samples}) == 8


def test_the_cache_hands_out_copies():
    scenes = SyntheticScenes(1, 0, 32, 40)
    first, before = scenes[0], digest(scenes[0])
    first.image[:] = 0
    first.depth[:] = 0
    assert digest(scenes[0]) == before == digest(SyntheticScenes(1, 0, 32, 40, cache=False)[0])


@pytest.mark.parametrize("kind", ["mixed", "rooms", "streets"])
def test_types_ranges_and_share_of_measured_pixels(kind):
    shares = []
    scenes = SyntheticScenes(24, 11, 48, 64, kind, max_depth=8.0)
    for sample in (scenes[i] for i in range(24)):
        assert sample.image.shape == (48, 64, 3)
        assert sample.image.dtype == np.uint8
        assert sample.depth.shape == (48, 64)
        assert sample.depth.dtype == np.float32
        assert sample.intrinsics.dtype == np.float64
        assert np.isfinite(sample.depth).all()
        assert sample.depth.max() < 8.0
        measured = sample.depth[sample.depth > 0]
        assert measured.min() > 0.05
        assert sample.image.std() > 4, f"{sample.id} shows nothing"
        assert 25 < sample.image.mean() < 230, f"{sample.id} is badly exposed"
        shares.append(measured.size / sample.depth.size)
    assert np.mean(shares) > 0.7


def test_field_of_view_and_pixel_convention():
    for sample in (SyntheticScenes(8, 5, 48, 64)[i] for i in range(8)):
        k = sample.intrinsics
        assert k[0, 0] == k[1, 1]
        assert 55 < np.degrees(2 * np.arctan(32 / k[0, 0])) < 67
        assert abs(k[0, 2] - 31.5) < 2
        assert abs(k[1, 2] - 23.5) < 2


def test_a_plane_has_its_analytic_depth():
    wall = solid(Shape.BOX, (0, 5.0, 0), (50, 0.5, 50))
    depth, index = cast([wall], VIEW, PIXELS)
    np.testing.assert_allclose(depth, 4.5, rtol=1e-6)  # depth along the axis, not the ray's length
    assert (index == 0).all()
    floor = solid(Shape.BOX, (0, 0, -2.5), (300, 300, 1.0))
    depth, index = cast([floor], VIEW, PIXELS)
    down = PIXELS.y > 0.02
    np.testing.assert_allclose(depth[down], np.repeat(1.5 / PIXELS.y[down, None], 64, 1), rtol=2e-5)
    assert (index[PIXELS.y <= 0] == -1).all()


def test_a_sphere_has_its_analytic_depth():
    depth, index = cast([solid(Shape.ELLIPSOID, (0.3, 4, 0.2), (1, 1, 1))], VIEW, PIXELS)
    x, y = np.meshgrid(PIXELS.x.astype(float), PIXELS.y.astype(float))
    ray, centre = np.stack([x, y, np.ones_like(x)], -1), np.array([0.3, -0.2, 4.0])
    a, b = (ray**2).sum(-1), ray @ centre
    under = b**2 - a * (centre @ centre - 1)
    np.testing.assert_array_equal(index == 0, under > 0)
    truth = (b - np.sqrt(np.maximum(under, 0))) / a
    clear = under > 1e-3
    np.testing.assert_allclose(depth[clear], truth[clear], rtol=1e-5)


def test_points_on_turned_solids_lie_on_their_surfaces():
    turned = turn(0.7, 0.4)
    box = solid(Shape.BOX, (0.2, 4, -0.1), (0.8, 0.5, 0.6), turned)
    cone = solid(Shape.FRUSTUM, (0.2, 4, -0.1), (0.9, 0.9, 0.7), turned, radii=(0.9, 0.3))
    room = solid(Shape.INTERIOR, (0.5, 1, 0.2), (2, 3, 1.5))
    for thing in (box, cone, room):
        depth, index = cast([thing], VIEW, PIXELS)
        scene = Scene(VIEW, LENS)
        points = world_points(scene, np.where(index == 0, depth, 1), 48, 64)[index == 0]
        local = np.abs((points - thing.centre) @ thing.rotation)
        assert len(local) > 150
        if thing is cone:
            signed = (points - thing.centre) @ thing.rotation
            side = np.hypot(local[:, 0], local[:, 1]) - (0.6 - 0.6 / 1.4 * signed[:, 2])
            assert np.minimum(np.abs(side), np.abs(local[:, 2] - 0.7)).max() < 1e-4
            assert local[:, 2].max() < 0.7 + 1e-4
        else:
            assert np.abs((local / thing.half).max(1) - 1).max() < 1e-4


def test_nearer_solids_hide_farther_ones_in_any_order():
    near, far = solid(Shape.BOX, (0, 3, 0), (0.3, 0.3, 0.3)), solid(Shape.BOX, (0, 6, 0), (9, 0.5, 9))
    first, second = cast([near, far], VIEW, PIXELS), cast([far, near], VIEW, PIXELS)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1] == 0, second[1] == 1)
    assert first[0].min() == pytest.approx(2.7)
    assert first[0].max() == pytest.approx(5.5)


def test_solids_behind_or_around_the_camera_are_not_seen():
    depth, index = cast([solid(Shape.BOX, (0, -3, 0), (1, 1, 1))], VIEW, PIXELS)
    assert (index == -1).all()
    assert np.isinf(depth).all()
    # A box that reaches past the image plane on both sides counts only in front
    _, index = cast([solid(Shape.BOX, (1.0, 0, 0), (0.5, 20, 5))], VIEW, PIXELS)
    assert (index[:, -1] == 0).all()
    assert (index[:, 0] == -1).all()


@pytest.mark.parametrize("kind", ["rooms", "streets"])
def test_backprojected_pixels_lie_on_the_scene(kind):
    """Floor and walls of real scenes, through the sample's own intrinsics: planes to a millimetre."""
    scenes = SyntheticScenes(4, 2, 60, 80, kind)
    for i in range(4):
        sample, scene = scenes[i], scenes.scene(i)
        np.testing.assert_array_equal(sample.intrinsics, scene.lens.matrix(60, 80))
        points = world_points(scene, sample.depth, 60, 80)
        grid = Grid.of(sample.intrinsics, np.arange(80.0), np.arange(60.0))
        _, index = cast(scene.solids, scene.view, grid)
        ground = (index == 0) & (sample.depth > 0)
        if kind == "rooms":
            shell = scene.solids[0]
            away = np.abs(np.abs(points[ground] - shell.centre) - shell.half).min(1)
        else:
            away = np.abs(points[ground][:, 2])
        assert ground.any()
        assert away.max() < 1e-3


def test_twice_the_resolution_is_the_same_scene():
    for i in range(3):
        small, large = SyntheticScenes(3, 4, 48, 64)[i], SyntheticScenes(3, 4, 96, 128)[i]
        assert large.intrinsics[0, 0] == pytest.approx(2 * small.intrinsics[0, 0])
        assert large.intrinsics[0, 2] + 0.5 == pytest.approx(2 * (small.intrinsics[0, 2] + 0.5))
        # A small pixel's centre is the corner of four large ones: inside faces inverse depth is linear
        with np.errstate(divide="ignore"):
            inverse = np.where(large.depth > 0, 1 / large.depth, 0).reshape(48, 2, 64, 2).swapaxes(1, 2)
        spread = inverse.max((2, 3)) - inverse.min((2, 3))
        smooth = (inverse.min((2, 3)) > 0) & (spread < 0.03 * inverse.max((2, 3))) & (small.depth > 0)
        assert smooth.mean() > 0.3
        error = np.abs(1 / inverse.mean((2, 3))[smooth] / small.depth[smooth] - 1)
        # ... except where a thin thing (a picture, a skirting board) begins between them
        assert np.quantile(error, 0.85) < 1e-5
        assert np.quantile(error, 0.98) < 1e-2
        shrunk = large.image.reshape(48, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(shrunk - small.image).mean() < 14


def test_pixels_from_the_range_on_are_not_measured():
    near, far = SyntheticScenes(4, 0, 48, 64, "rooms", 3.0), SyntheticScenes(4, 0, 48, 64, "rooms", 80.0)
    for a, b in ((near[i], far[i]) for i in range(4)):
        np.testing.assert_array_equal(a.depth, np.where(b.depth < 3.0, b.depth, 0))
        assert (b.depth > 0).all()
        np.testing.assert_array_equal(a.image, b.image)
    assert max(SyntheticScenes(4, 0, 48, 64, "streets", 80.0)[i].depth.max() for i in range(4)) > 20


@pytest.mark.parametrize("texture", sorted(_PATTERNS))
@pytest.mark.parametrize("footprint", [1e-4, 0.01, 3.0])
def test_textures_stay_within_reason(texture, footprint):
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-40, 40, (2, 500)).astype(np.float32)
    material = Material(texture, (0.6, 0.4, 0.3), (0.2, 0.3, 0.5), 0.15, 0.4, 4095, size=(1.2, 0.9))
    colour = reflectance(material, u, v, np.full(500, footprint, np.float32))
    assert colour.shape == (3, 500)
    assert colour.dtype == np.float32
    assert np.isfinite(colour).all()
    assert colour.min() > -0.4
    assert colour.max() < 3


def test_shadow_and_light_fall_where_they_should():
    floor = solid(Shape.BOX, (0, 0, -2), (20, 20, 0.5), shadow=False)
    lid = solid(Shape.BOX, (0, 4, -0.2), (0.6, 0.6, 0.05))
    lamp = Light(np.array([0.0, 4.0, 2.0]), (6.0, 6.0, 6.0))
    view = look(np.array([0.0, 0.0, 0.2]), 0.0, -0.3)
    lit, depth = radiance(Scene(view, LENS, [floor], [lamp]), 96, 128)
    dark, _ = radiance(Scene(view, LENS, [floor, lid], [lamp]), 96, 128)
    points = world_points(Scene(view, LENS), np.where(np.isinf(depth), 0, depth), 96, 128)
    off = np.maximum(np.abs(points[..., 0]), np.abs(points[..., 1] - 4))
    ground = np.abs(points[..., 2] + 1.5) < 1e-2
    # The lid's shadow on the floor reaches 0.6 m * 3.5 / 2.2 from the axis
    seen = np.isclose(depth, radiance(Scene(view, LENS, [floor, lid], [lamp]), 96, 128)[1])
    inside, outside = ground & seen & (off < 0.8), ground & seen & (off > 1.6) & (off < 3)
    assert inside.any()
    assert (dark[1][inside] < 0.75 * lit[1][inside]).mean() > 0.9
    assert (dark[1][outside] > 0.9 * lit[1][outside]).mean() > 0.95


def test_describe_and_length():
    scenes = SyntheticScenes(1200, 3, 96, 128, "rooms", offset=50)
    assert len(scenes) == 1200
    for word in ("1,200", "rooms", "seed 3", "50-1249", "96x128", "10 m"):
        assert word in scenes.describe()
    with pytest.raises(IndexError):
        scenes[1200]
    with pytest.raises(IndexError):
        scenes[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"count": 0}, "count"),
        ({"count": 2.5}, "count"),
        ({"count": 4, "seed": -1}, "seed"),
        ({"count": 4, "height": 4}, "height"),
        ({"count": 4, "width": 0}, "width"),
        ({"count": 4, "offset": -2}, "offset"),
        ({"count": 4, "kind": "gardens"}, "rooms, streets"),
        ({"count": 4, "max_depth": 0.0}, "max_depth"),
        ({"count": 4, "max_depth": 4.9}, "between 5 and 1000"),
        ({"count": 4, "max_depth": 4.9, "kind": "streets"}, "between 5 and 1000"),
        ({"count": 4, "max_depth": 0.9, "kind": "rooms"}, "between 1 and 1000"),
        ({"count": 4, "max_depth": float("nan")}, "max_depth"),
    ],
)
def test_invalid_arguments_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        SyntheticScenes(**arguments)
