"""`sa2depth data prepare` as users type it: plan, progress, verdict, exit status."""

import shutil
import zipfile

import pytest
import typer
from typer.testing import CliRunner

from sa2depth.cli.data import prepare as command
from sa2depth.cli.friendly import friendly

app = typer.Typer()
app.command()(friendly(command.prepare))
app.command("other")(lambda: None)  # with two commands, typer wants the name


def run(*arguments):
    return CliRunner().invoke(app, ["prepare", *map(str, arguments)])


@pytest.fixture
def archive(tmp_path):
    names = [
        f"rec{rec}/{folder}/{n:03d}.png"
        for rec in (1, 2)
        for folder in ("outleft", "depthmap")
        for n in range(5)
    ]
    with zipfile.ZipFile(tmp_path / "diml.zip", "w") as file:
        for name in names:
            file.writestr(name, name)
    return tmp_path / "diml.zip"


def test_plan_then_tree_then_nothing_to_do(archive, tmp_path):
    root = tmp_path / "diml"
    dry = run("diml_outdoor", "--from", archive, "--root", root, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert f"{archive}: zip archive, 20 files of this data set" in dry.stdout
    assert "20 files to write, about 0.1 MB" in dry.stdout
    assert "WOULD BE COMPLETE" in dry.stdout
    assert not root.exists()
    done = run("diml_outdoor", "--from", archive, "--root", root, "--workers", 2)
    assert done.exit_code == 0, done.output
    assert "done: 20 written" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("COMPLETE: DIML outdoor")
    again = run("diml_outdoor", "--from", archive, "--root", root)
    assert again.exit_code == 0
    assert "20 files exist already" in again.stdout
    assert "done: nothing to do" in again.stdout
    checked = run("diml_outdoor", "--from", archive, "--root", root, "--verify")
    assert "done: 20 compared and correct" in checked.stdout


def test_links_and_copies_of_folders(archive, tmp_path):
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    root = tmp_path / "diml"
    linked = run("diml_outdoor", "--from", tmp_path / "unpacked", "--root", root)
    assert "20 links to make" in linked.stdout
    assert "done: 20 links made" in linked.stdout
    copied = run("diml_outdoor", "--from", tmp_path / "unpacked", "--root", root, "--copy")
    assert "20 of them replace a file or link with other contents" in copied.stdout
    assert not any(path.is_symlink() for path in root.rglob("*"))


def test_what_is_missing_is_named_with_its_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "drive.zip", "w") as file:
        file.writestr("2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000006.png", "x")
    for dry, verdict in (("--dry-run", "WOULD BE INCOMPLETE"), ("--copy", "INCOMPLETE")):
        result = run("kitti_eigen", "--from", tmp_path / "drive.zip", "--root", tmp_path / "kitti", dry)
        assert result.exit_code == 1
        last = result.stdout.splitlines()[-1]
        assert last.startswith(f"{verdict}: still needed: data_depth_annotated.zip (23,810 files), 2011_")
        assert last.endswith("more archives")
        assert "KITTI Eigen, test: " in result.stdout
        assert f"{tmp_path / 'kitti'}/2011_09_26/" in result.stdout


def test_damaged_members_are_named_and_the_status_is_1(archive, tmp_path):
    data = archive.read_bytes()
    at = data.index(b"rec1/outleft/003.png", data.index(b"rec1/outleft/003.png") + 1)
    archive.write_bytes(data[:at] + b"R" + data[at + 1 :])
    result = run("diml_outdoor", "--from", archive, "--root", tmp_path / "diml")
    assert result.exit_code == 1
    assert "its member 'rec1/outleft/003.png' is damaged" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("INCOMPLETE: some sources are damaged")


def test_ctrl_c_says_that_it_continues(archive, tmp_path, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sa2depth.data.prepare.execute", stopped)
    result = run("diml_outdoor", "--from", archive, "--root", tmp_path / "diml")
    assert result.exit_code == 130
    assert "Run the same command again to continue" in result.stderr
