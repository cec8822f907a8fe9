import cv2
import numpy as np
import pytest

from sa2depth.errors import DataError
from sa2depth.report import plot_curves
from sa2depth.report.curves import _panels, _read, _smooth

CSV = """epoch,lr,step,train/loss_epoch,train/loss_step,val/abs_rel,val/loss
0,1e-3,9,,5.0,,
0,,19,,nan,,
0,,19,,,0.9,4.5
0,,19,4.8,,,
1,9e-4,29,,3.0,,
1,,39,,,0.5,inf
"""


def test_sparse_columns(tmp_path):
    source = tmp_path / "metrics.csv"
    source.write_text(CSV)
    curves = _read(source)
    assert curves["train/loss_step"] == ([9, 29], [5.0, 3.0])
    assert curves["val/loss"] == ([19], [4.5])
    assert curves["lr"] == ([9, 29], [1e-3, 9e-4])
    panels = _panels(curves)
    assert list(panels) == ["loss", "abs_rel", "lr"]
    assert list(panels["loss"]) == ["train/loss_epoch", "train/loss_step", "val/loss"]
    picture = cv2.imread(str(plot_curves(source, tmp_path / "new" / "curves.png")))
    assert picture.shape[1] > 2.5 * picture.shape[0]  # three panels in a row
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_long_and_ragged_files(tmp_path):
    source = tmp_path / "metrics.csv"
    source.write_text(
        "step,train/loss\n" + "".join(f"{i},{9 / (i + 1)}\n" for i in range(300)) + "300,1.0,surplus\n301\n"
    )
    assert plot_curves(source, tmp_path / "c.png").stat().st_size > 5000


def test_nothing_to_draw(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        plot_curves(tmp_path / "absent.csv", tmp_path / "c.png")
    for text in ("", "epoch,step,loss\n0,1,\n"):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(DataError, match="no number to draw"):
            plot_curves(tmp_path / "metrics.csv", tmp_path / "c.png")


def test_running_mean_does_not_lag():
    line = [3.0 - 0.01 * i for i in range(200)]
    np.testing.assert_allclose(_smooth(line), line)
    noisy = np.array(line) + 0.2 * (-1.0) ** np.arange(200)
    assert np.abs(_smooth(noisy.tolist())[20:-20] - np.array(line)[20:-20]).max() < 0.02


def test_learning_rates_share_a_panel_and_steady_counts_are_left_out():
    steps = [0.0, 1.0]
    curves = {
        "lr-AdamW/encoder": (steps, [1.0, 0.5]),
        "lr-AdamW/decoder": (steps, [2.0, 1.0]),
        "val/images": (steps, [59.0, 59.0]),
        "test/images": ([1.0], [654.0]),
        "val/nonfinite_pixels": (steps, [0.0, 3.0]),
        "val/abs_rel": ([1.0], [0.2]),
    }
    panels = _panels(curves)
    assert set(panels) == {"learning rate", "nonfinite_pixels", "abs_rel"}
    assert set(panels["learning rate"]) == {"lr-AdamW/encoder", "lr-AdamW/decoder"}
