"""The shipped split tables have their published counts, and ranges are parsed."""

import pytest

from sa2depth.data.sets import nyu
from sa2depth.data.splits.tables import entries_without_truth, parse_ranges, read_table, tables
from sa2depth.errors import DataError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5]), ("", []), ("4-4", [4]), (" 1 - 2 ,\r\n9\r\n", [1, 2, 9])],
)
def test_ranges(text, numbers):
    assert parse_ranges(text) == numbers


@pytest.mark.parametrize("text", ["a", "3-", "-3", "5-2", "1,,2", "1-2-3", "1.5"])
def test_nonsense_ranges_are_refused(text):
    with pytest.raises(DataError):
        parse_ranges(text)


PUBLISHED = {
    "nyu_v2_train_36253": (36253, 284, ("basement_0001a", 0), 0),
    "nyu_v2_train_24231": (24231, 284, ("basement_0001a", 1), 0),
    "nyu_v2_test_654": (654, 16, ("bathroom", 45), 0),
    "nyu_v2_labelled_train_795": (795, 249, ("basement_0001", 489), 0),
    "kitti_eigen_train": (23158, 33, ("2011_09_26_drive_0001_sync/image_02", 5), 0),
    "kitti_eigen_test": (697, 28, ("2011_09_26_drive_0002_sync/image_02", 0), 45),
    "kitti_official_val": (
        1000,
        26,
        ("2011_09_26_drive_0002_sync/image_02", 5),
        0,
    ),  # both cameras of 13 drives
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_split_tables_have_their_published_counts(name):
    count, scenes, first, without_truth = PUBLISHED[name]
    table = read_table(name)
    assert len(table) == len(set(table)) == count
    assert len({scene for scene, _ in table}) == scenes
    assert list(table) == sorted(table)
    assert table[0] == first
    assert len(entries_without_truth(name)) == without_truth
    assert entries_without_truth(name) < set(table)


def test_the_official_halves_of_the_labelled_set_share_no_image():
    numbers = [number for name in nyu.LABELLED_TABLES.values() for _, number in read_table(name)]
    assert sorted(numbers) == list(range(1449))


def test_unknown_table_names_the_others():
    with pytest.raises(DataError, match="nyu_v2_test_654"):
        read_table("nyu_v3")
    assert tables() == sorted(PUBLISHED)
