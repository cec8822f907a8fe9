"""Files appear whole or not at all."""

import stat

import pytest

from sa2depth.atomic import atomic_path


def test_written_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
        assert target.read_text() == text
    assert [item.name for item in target.parent.iterdir()] == ["a.txt"]


def test_failure_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert target.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    plain, target = tmp_path / "plain", tmp_path / "target"
    plain.touch()
    with atomic_path(target) as temporary:
        temporary.write_text("x")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_writer_that_puts_a_private_file_in_its_place(tmp_path):
    plain, target, private = tmp_path / "plain", tmp_path / "target", tmp_path / "private"
    plain.touch()
    with atomic_path(target) as temporary:
        private.touch(mode=0o600)
        private.write_text("x")
        private.replace(temporary)
    assert target.read_text() == "x"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
