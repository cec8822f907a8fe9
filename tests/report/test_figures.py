import cv2
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from sa2depth.errors import ShapeError
from sa2depth.report import DepthGrids, colorize, depth_grid, figures


def scene(height=48, width=64, seed=0):
    rng = np.random.RandomState(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    truth = 1 + 6 * (1 - rows / height) + np.sin(columns / 9)
    image = np.repeat((truth / truth.max() * 255).astype(np.uint8)[..., None], 3, axis=2)
    truth[:6] = 0
    return image, truth, truth * rng.uniform(0.8, 1.2, truth.shape) + 0.01


def test_grid(tmp_path):
    image, truth, guess = scene()
    backend = matplotlib.get_backend()
    one = depth_grid([image], [truth], [guess], 10.0, tmp_path / "new" / "one.png")
    three = depth_grid(
        [image, torch.rand(3, 48, 64), image],
        [truth, torch.from_numpy(truth)[None], None],
        [guess, torch.from_numpy(guess)[None], guess],
        10.0,
        tmp_path / "three.png",
        titles=["a", "b", "c"],
    )
    assert matplotlib.get_backend() == backend
    first, second = cv2.imread(str(one)), cv2.imread(str(three))
    assert first.shape[1] == second.shape[1] > 1000
    assert second.shape[0] > 2 * first.shape[0]
    # the colours of the far end of the prediction are in the picture, as drawn by colorize
    wanted = colorize(truth, 0.0, 10.0)[20, 30, ::-1].astype(int)
    assert (np.abs(first.astype(int) - wanted).max(axis=2) <= 3).any()


def test_grid_marks_broken_predictions(tmp_path):
    image, truth, guess = scene()
    guess[20:30, 20:40] = np.nan
    picture = cv2.imread(str(depth_grid([image], [truth], [guess], 10.0, tmp_path / "nan.png")))
    assert ((picture == [255, 255, 0]).all(axis=2)).sum() > 500  # cyan in BGR


def test_grid_has_effective_scales(tmp_path):
    image, truth, guess = scene()
    drawn = set()
    for end, options in ((10.0, {}), (5.0, {}), (10.0, {"max_error": 0.1}), (10.0, {"titles": ["x"]})):
        drawn.add(depth_grid([image], [truth], [guess], end, tmp_path / "a.png", **options).read_bytes())
    assert len(drawn) == 4


def test_grid_refuses_unequal_input(tmp_path):
    image, truth, guess = scene()
    with pytest.raises(ShapeError, match="0 images"):
        depth_grid([], [], [], 10.0, tmp_path / "x.png")
    with pytest.raises(ShapeError, match="2 predictions"):
        depth_grid([image], [truth], [guess, guess], 10.0, tmp_path / "x.png")
    with pytest.raises(ShapeError, match=r"\(48, 64\).*\(48, 63\)"):
        depth_grid([image], [truth], [guess[:, :-1]], 10.0, tmp_path / "x.png")
    with pytest.raises(ShapeError, match="RGB"):
        depth_grid([image[..., 0]], [truth], [guess], 10.0, tmp_path / "x.png")


def rows_of(*scenes, truth=True, broken=False):
    images, truths, guesses = map(list, zip(*scenes, strict=True))
    if broken:
        guesses[0] = guesses[0].copy()
        guesses[0][20:30, 20:40] = np.nan
    return images, truths if truth else [None] * len(images), guesses


# The second strip of a layout reuses its headings and colour bars; each change of the layout makes a new one.
GRIDS = [
    (rows_of(scene()), ["abs_rel 0.100\nfirst"]),
    (rows_of(scene(seed=1)), ["second"]),
    (rows_of(scene(seed=2), broken=True), None),
    # the letters reach the colour bar of depth, and stand over it
    (rows_of(scene(seed=3)), ["abs_rel 0.100\n\n" + 60 * "W"]),
    (rows_of(scene(seed=3)), [60 * "W"]),
    (rows_of(scene(seed=4)), ["$x_1$ again, short"]),
    (rows_of(scene(), truth=False), ["no truth"]),
    (rows_of(scene(seed=5), truth=False), ["no truth again"]),
    (rows_of(scene(40, 90)), ["another size"]),
    (rows_of(scene(90, 40)), ["another aspect"]),
    (rows_of(scene(), scene(40, 90), scene(seed=1)), ["a", "b", "c"]),
    (rows_of(scene(seed=6), scene(40, 90, seed=7), scene(seed=8), broken=True), ["d", "e\nf", 60 * "W"]),
    (rows_of(scene(seed=9)), ["first size again"]),
]


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"))


def test_grids_of_one_drawer_have_the_pixels_of_matplotlib(tmp_path):
    grids = DepthGrids(10.0)
    for number, (rows, titles) in enumerate(GRIDS):
        # matplotlib draws the whole figure for formats other than PNG
        whole = pixels_of(depth_grid(*rows, 10.0, tmp_path / "whole.tif", titles=titles))
        assert np.array_equal(pixels_of(grids.draw(*rows, tmp_path / "kept.png", titles)), whole), number
        assert np.array_equal(pixels_of(depth_grid(*rows, 10.0, tmp_path / "one.png", titles)), whole), number


def test_grids_of_one_layout_share_a_figure(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(figures, "Figure", lambda **kw: made.append(Figure(**kw)) or made[-1])
    grids = DepthGrids(10.0)
    for rows, titles in GRIDS:
        grids.draw(*rows, tmp_path / "x.png", titles)
    assert len(made) == 6


def test_a_grid_follows_the_users_colours(tmp_path):
    rows, titles = GRIDS[0]
    with matplotlib.rc_context({"savefig.facecolor": "black", "text.color": "white"}):
        dark = pixels_of(depth_grid(*rows, 10.0, tmp_path / "dark.png", titles))
        whole = pixels_of(depth_grid(*rows, 10.0, tmp_path / "whole.tif", titles))
    assert dark[0, 0].tolist() == [0, 0, 0, 255]
    assert np.array_equal(dark, whole)
