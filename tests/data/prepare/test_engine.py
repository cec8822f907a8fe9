"""Preparing data sets: plans, archives, links, stopped runs, damaged or unsafe sources."""

import errno
import fcntl
import io
import os
import stat
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest

from sa2depth.data.prepare import Recipe, engine, execute, make_plan, plan
from sa2depth.data.prepare.plan import State
from sa2depth.data.prepare.sources import open_sources
from sa2depth.errors import DataError


@dataclass(frozen=True)
class Bins(Recipe):
    """Takes every ``FOLDER/NAME.bin`` and keeps this path."""

    title = "Bins"
    archives = "bins.zip"

    def place(self, name, source):
        path = PurePosixPath(name)
        return "/".join(path.parts[-2:]) if path.suffix == ".bin" else None

    def splits(self):
        return []

    def origin(self, path):
        return "bins.zip"


FILES = {
    f"{folder}/{number:03d}.bin": bytes([number]) * (100 + number) for folder in "ab" for number in range(40)
}


def pack_zip(path, files=FILES, prefix="top/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def pack_tar(path, files=FILES, prefix="top/", mode="w", kind=tarfile.REGTYPE):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO(data))
    return path


def unpack(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def planned(root, *paths, copy=False):
    recipe = Bins(root)
    return make_plan(recipe, open_sources(paths, recipe), copy=copy)


def run(root, *paths, copy=False, **options):
    return execute(planned(root, *paths, copy=copy), **options)


def tree(root):
    """Contents of all files below, hidden ones included."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def stamps(root):
    return {path: path.lstat().st_mtime_ns for path in root.rglob("*")}


@pytest.fixture(params=["zip", "tar", "tgz", "folder"])
def source(request, tmp_path):
    kinds = {
        "zip": lambda: pack_zip(tmp_path / "bins.zip"),
        "tar": lambda: pack_tar(tmp_path / "bins.tar"),
        "tgz": lambda: pack_tar(tmp_path / "bins.tar.gz", mode="w:gz"),
        "folder": lambda: unpack(tmp_path / "unpacked"),
    }
    return kinds[request.param]()


@pytest.mark.parametrize("copy", [False, True])
def test_all_files_arrive_and_a_second_run_touches_nothing(source, copy, tmp_path):
    root = tmp_path / "root"
    outcome = run(root, source, copy=copy, workers=3)
    assert tree(root) == FILES
    links = source.is_dir() and not copy
    assert (outcome.linked, outcome.written) == ((80, 0) if links else (0, 80))
    assert all((root / name).is_symlink() == links for name in FILES)
    before = stamps(root)
    again = planned(root, source, copy=copy)
    assert again.to_do == ()
    assert again.states == {State.WHOLE: 80}
    assert execute(again) == engine.Outcome()
    assert stamps(root) == before


def test_written_files_are_ordinary_ones(tmp_path):
    root = tmp_path / "root"
    run(root, pack_zip(tmp_path / "bins.zip"))
    (tmp_path / "plain").touch()
    wanted = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in FILES} == {wanted}


def test_incomplete_files_are_made_again(tmp_path):
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    run(root, archive)
    (root / "a/007.bin").write_bytes(FILES["a/007.bin"][:50])
    (root / "b/003.bin").unlink()
    (root / "b/004.bin").write_bytes(b"")
    states = planned(root, archive).states
    assert (states[State.DIFFERS], states[State.ABSENT]) == (2, 1)
    assert run(root, archive).written == 3
    assert tree(root) == FILES


def test_verify_finds_changes_of_equal_size(source, tmp_path):
    root = tmp_path / "root"
    run(root, source, copy=True)
    wrong = bytearray(FILES["a/007.bin"])
    wrong[3] ^= 1
    (root / "a/007.bin").write_bytes(wrong)
    assert planned(root, source, copy=True).to_do == ()
    outcome = run(root, source, copy=True, verify=True)
    assert (outcome.verified, outcome.repaired, outcome.written) == (79, 1, 0)
    assert tree(root) == FILES


def test_broken_and_other_links_are_replaced(tmp_path):
    root, old, new = tmp_path / "root", unpack(tmp_path / "old"), tmp_path / "new"
    run(root, old)
    old.rename(new)
    assert planned(root, new).states == {State.DANGLING: 80}
    assert run(root, new).linked == 80
    assert tree(root) == FILES
    assert (root / "a/001.bin").readlink() == new / "a/001.bin"
    unpack(old)
    assert run(root, old).linked == 80
    assert (root / "a/001.bin").readlink() == old / "a/001.bin"


def test_copy_turns_links_into_files_and_keeps_the_source(tmp_path):
    root, folder = tmp_path / "root", unpack(tmp_path / "unpacked")
    for path in folder.rglob("*.bin"):
        path.chmod(0o440)
    run(root, folder)
    before = stamps(folder)
    assert run(root, folder, copy=True).written == 80
    assert not any(path.is_symlink() for path in root.rglob("*"))
    assert stamps(folder) == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.bin")} == {0o440}
    assert planned(root, folder, copy=True).to_do == ()


def test_extracting_over_a_link_does_not_write_through_it(tmp_path):
    root, folder = tmp_path / "root", unpack(tmp_path / "unpacked", {"a/001.bin": b"short"})
    run(root, folder)
    run(root, pack_zip(tmp_path / "bins.zip"))
    assert tree(root) == FILES
    assert (folder / "a/001.bin").read_bytes() == b"short"


def test_file_systems_without_links_get_their_own_error(tmp_path, monkeypatch):
    def refuse(self, goal):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    with pytest.raises(
        DataError, match=r"does not allow symbolic links \(Operation not permitted\): use --copy"
    ):
        run(tmp_path / "root", unpack(tmp_path / "unpacked"))
    run(tmp_path / "root", tmp_path / "unpacked", copy=True)
    assert tree(tmp_path / "root") == FILES


def test_folders_with_archives_and_with_loops(tmp_path):
    folder, root = tmp_path / "downloads", tmp_path / "downloads" / "root"
    unpack(folder / "part", {name: data for name, data in FILES.items() if name.startswith("a")})
    pack_zip(folder / "b.zip", {name: data for name, data in FILES.items() if name.startswith("b")})
    (folder / "part" / "loop").symlink_to(folder)
    (folder / "part" / "gone.bin").symlink_to(folder / "nowhere")
    outcome = run(root, folder)
    assert (outcome.linked, outcome.written) == (40, 40)
    assert tree(root) == FILES
    again = planned(root, folder)
    assert again.to_do == ()
    assert again.dangling == (str(folder / "part" / "gone.bin"),)


def test_archives_in_the_root_itself(tmp_path):
    root = unpack(tmp_path / "root", {"a/001.bin": b"half of wh"})
    pack_zip(root / "bins.zip")
    assert run(root, root).written == 80
    assert {name: data for name, data in tree(root).items() if name != "bins.zip"} == FILES


def test_the_same_file_twice(tmp_path):
    one, two = pack_zip(tmp_path / "1.zip"), pack_zip(tmp_path / "2.zip", prefix="other/")
    both = planned(tmp_path / "root", one, two)
    assert (len(both.steps), both.twice) == (80, 80)
    assert {step.source.path for step in both.steps} == {one}
    three = pack_zip(tmp_path / "3.zip", {"a/001.bin": b"another"})
    with pytest.raises(DataError, match=r"a/001.bin: two sources have it.*101 bytes.*7 bytes"):
        planned(tmp_path / "root", one, three)


@pytest.mark.parametrize(
    "name", ["../a/x.bin", "/etc/x.bin", "a/../../x.bin", "..\\a\\x.bin", "C:\\a\\x.bin"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused(kind, name, tmp_path):
    path = tmp_path / f"evil.{kind}"
    (pack_zip if kind == "zip" else pack_tar)(path, {name: b"x"}, prefix="")
    with pytest.raises(DataError, match="would be unpacked outside the folder") as error:
        planned(tmp_path / "root", path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_in_tars_are_refused_where_they_matter(kind, tmp_path):
    with pytest.raises(DataError, match=r"'top/a/x.bin' is a link or a device"):
        planned(tmp_path / "root", pack_tar(tmp_path / "x.tar", {"a/x.bin": b""}, kind=kind))
    path = pack_tar(tmp_path / "y.tar", {"a/readme": b""}, kind=kind)
    assert planned(tmp_path / "root", path).steps == ()


def test_links_and_secrets_in_zips_are_refused(tmp_path):
    link = zipfile.ZipInfo("a/x.bin")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"'a/x.bin' is a link"):
        planned(tmp_path / "root", tmp_path / "link.zip")
    data = bytearray(pack_zip(tmp_path / "plain.zip", {"a/x.bin": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"'top/a/x.bin' is encrypted"):
        planned(tmp_path / "root", tmp_path / "secret.zip")


def test_files_added_by_macos_are_left_out(tmp_path):
    path = pack_zip(tmp_path / "mac.zip", {"a/1.bin": b"1", "__MACOSX/a/2.bin": b"2", "a/._1.bin": b"3"})
    run(tmp_path / "root", path)
    assert tree(tmp_path / "root") == {"a/1.bin": b"1"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_archives_that_end_early(kind, tmp_path):
    whole = (
        pack_zip(tmp_path / "w.zip")
        if kind == "zip"
        else pack_tar(tmp_path / "w", mode="w:gz" if kind == "tgz" else "w")
    )
    cut = tmp_path / f"cut.{kind}"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=r"cut\.\w+: it is damaged or incomplete .*Download it again"):
        planned(tmp_path / "root", cut)


def test_a_damaged_member_is_named_and_the_others_arrive(tmp_path):
    root, archive = tmp_path / "root", tmp_path / "bins.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in FILES.items():
            file.writestr(name, data)
    good = archive.read_bytes()
    at = good.index(FILES["a/020.bin"])
    archive.write_bytes(good[:at] + b"\xff\xff" + good[at + 2 :])
    outcome = run(root, archive)
    assert outcome.written == 79
    assert len(outcome.failures) == 1
    assert f"{archive}: its member 'a/020.bin' is damaged" in outcome.failures[0]
    assert tree(root) == {name: data for name, data in FILES.items() if name != "a/020.bin"}
    archive.write_bytes(good)
    assert run(root, archive).written == 1
    assert tree(root) == FILES


def test_files_that_are_not_sources(tmp_path):
    (tmp_path / "page.zip").write_text("<html>Please log in</html>")
    with pytest.raises(DataError, match=r"page.zip: expected one of a zip or tar archive.*interrupted"):
        planned(tmp_path / "root", tmp_path / "page.zip")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="unpack it and give the folder"):
        planned(tmp_path / "root", tmp_path / "x.rar")
    with pytest.raises(DataError, match="no such file or folder"):
        planned(tmp_path / "root", tmp_path / "absent.zip")


def test_space_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    free = 79 * 4096
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: _Usage(free))
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    assert planned(root, archive).bytes_needed() == 80 * 4096
    with pytest.raises(DataError, match="not enough space"):
        run(root, archive)
    assert not root.exists()
    run(root, unpack(tmp_path / "unpacked"))
    assert tree(root) == FILES


@dataclass
class _Usage:
    free: int


def test_a_disk_that_fills_up_ends_the_run_with_advice(tmp_path, monkeypatch):
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    real = engine.atomic_path

    @contextmanager
    def full(target):
        with real(target) as temporary:
            if len(list(root.rglob("[0-9]*.bin"))) >= 5:
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
            yield temporary

    monkeypatch.setattr(engine, "atomic_path", full)
    with pytest.raises(DataError, match=r"the disk is full. Free some space and run the same command again"):
        run(root, archive, workers=1)
    assert len(tree(root)) == 5
    monkeypatch.undo()
    assert run(root, archive).written == 75
    assert tree(root) == FILES


def test_unfinished_files_are_removed_and_other_files_kept(tmp_path):
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    strangers = {
        "a/.git": b"x",
        "a/.other-0123456789abcdef.bin": b"y",
        "a/.001-short.bin": b"z",
        "a/notes.txt": b"n",
    }
    unpack(root, {**strangers, "a/.001-0123456789abcdef.bin": b"half", "b/.039-0000000000000000.bin": b""})
    assert len(planned(root, archive).leftovers) == 2
    run(root, archive)
    assert tree(root) == FILES | strangers
    unpack(root, {"a/.001-0123456789abcdef.bin": b"half"})
    run(root, archive)  # also if nothing else is left to do
    assert tree(root) == FILES | strangers


def test_two_runs_do_not_share_a_tree(tmp_path):
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    root.mkdir()
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run is preparing this tree"):
            run(root, archive)
    finally:
        os.close(handle)
    assert run(root, archive).written == 80


def test_files_and_folders_in_the_way(tmp_path):
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    (root / "a" / "001.bin").mkdir(parents=True)
    with pytest.raises(DataError, match=r"001.bin: a file belongs here, found a folder"):
        planned(root, archive)
    other = unpack(tmp_path / "other", {"a": b"file"})
    with pytest.raises(DataError, match=r"a: a folder belongs here, found a file"):
        planned(other, archive)


def test_stopped_by_the_keyboard(tmp_path):
    root, archive = tmp_path / "root", pack_zip(tmp_path / "bins.zip")
    done = []

    def tick(step):
        done.append(step)
        if len(done) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, archive, workers=2, tick=tick)
    part = tree(root)
    assert 10 <= len(part) < 80
    assert part.items() <= FILES.items()
    run(root, archive)
    assert tree(root) == FILES
