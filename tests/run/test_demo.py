"""The demonstration, shortened: training, evaluation, a real photo, and the list of results."""

import cv2
import numpy as np
import pytest

pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.slow]


def test_the_demo_ends_with_a_photo_and_says_where_to_look(program, tiny, tmp_path):
    done = program("sa2depth.demo", *tiny[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs/demo").iterdir()
    for name in ("grid.png", "curves.png", "photo/photo.png", "photo/china_depth.png"):
        assert (folder / name).is_file(), name
    for words in ("abs_rel", "median depth map", "times better", "grid.png", "photo.png", "sa2depth predict"):
        assert words in done.stdout
    depth = np.load(folder / "photo/china_depth.npy")
    assert depth.shape == (427, 640)
    assert np.isfinite(depth).all()
    assert (depth > 0.1).all()
    assert (depth < 10).all()
    millimetres = cv2.imread(str(folder / "photo/china_depth_mm.png"), cv2.IMREAD_UNCHANGED)
    assert abs(millimetres / 1000 - depth).max() <= 0.0005 + 1e-6


def test_a_failing_training_fails_the_demo(program, tmp_path):
    done = program("sa2depth.demo", "optim.lrr=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "optim.lrr" in done.stderr
