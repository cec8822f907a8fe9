import numpy as np
import pytest
from PIL import Image

from sa2depth.errors import ShapeError
from sa2depth.report.contact_sheet import SheetRow, _scale_end, contact_sheet


def row(height=48, width=64, depth=3.0, augmented=False, title="room/1"):
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = 255, 0, 0
    truth = None if depth is None else np.full((height, width), depth, np.float32)
    if not augmented:
        return SheetRow(title, image, truth)
    green = np.zeros((height // 2, width // 2, 3), np.float32)
    green[..., 1] = 1.0
    after = None if depth is None else np.full((height // 2, width // 2), depth, np.float32)
    return SheetRow(title, image, truth, green, after)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def share(picture, colour):
    return (np.abs(picture.astype(int) - colour).max(axis=2) < 8).mean()


def test_each_image_is_a_row(tmp_path):
    one = pixels(contact_sheet([row()], tmp_path / "one.png", "a heading"))
    three = pixels(contact_sheet([row()] * 3, tmp_path / "deep" / "three.png"))
    assert three.shape[1] == one.shape[1]
    red = [share(sheet, (255, 0, 0)) * sheet.size for sheet in (one, three)]
    assert red[0] > 0
    assert red[1] == pytest.approx(3 * red[0], rel=0.02)


def test_augmentation_adds_its_two_columns(tmp_path):
    plain = pixels(contact_sheet([row()], tmp_path / "a.png"))
    both = pixels(contact_sheet([row(augmented=True)], tmp_path / "b.png"))
    assert both.shape[1] > 1.5 * plain.shape[1]
    assert share(both, (0, 255, 0)) > 0.05
    assert share(plain, (0, 255, 0)) == 0


def test_one_depth_has_one_colour_in_all_rows(tmp_path):
    sheet = pixels(contact_sheet([row(depth=2.0), row(depth=2.0), row(depth=8.0)], tmp_path / "s.png"))
    height, width = sheet.shape[:2]
    colours = [tuple(sheet[int(height * y), int(width * 0.5)]) for y in (0.22, 0.5, 0.75)]
    assert colours[0] == colours[1]
    assert colours[0] != colours[2]


def test_wide_pictures_get_wide_cells(tmp_path):
    room = pixels(contact_sheet([row(480, 640)], tmp_path / "r.png"))
    street = pixels(contact_sheet([row(375, 1242)], tmp_path / "s.png"))
    assert street.shape[1] > room.shape[1]
    assert street.shape[0] < room.shape[0]


def test_what_is_absent_is_no_error(tmp_path):
    empty = SheetRow("x" * 200, np.zeros((1, 5, 3), np.uint8), np.zeros((1, 5), np.float32))
    rows = [row(depth=None), empty, row(depth=None, augmented=True), row(augmented=True)]
    assert pixels(contact_sheet(rows, tmp_path / "s.png")).size


@pytest.mark.parametrize(("depth", "end"), [(3.0, 3.0), (7.2, 7.5), (0.83, 0.85), (79.0, 80.0), (12.0, 15.0)])
def test_the_scale_ends_at_a_round_number(depth, end):
    assert _scale_end([row(depth=depth)]) == pytest.approx(end)


def test_wrong_shapes_are_named(tmp_path):
    with pytest.raises(ShapeError, match="at least one"):
        contact_sheet([], tmp_path / "s.png")
    wrong = SheetRow("room/7", np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.float32))
    with pytest.raises(ShapeError, match="room/7"):
        contact_sheet([wrong], tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
