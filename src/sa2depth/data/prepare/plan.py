"""The plan: the source and the state of each file of the tree. Nothing is written here."""

import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from sa2depth.atomic import TEMPORARY
from sa2depth.data.prepare.archives import FolderSource
from sa2depth.data.prepare.members import Member, Source
from sa2depth.data.prepare.recipe import Recipe
from sa2depth.errors import DataError

_BLOCK = 4096
# Most file systems allocate multiples of this.
_LINK = 256
_HEAD = 1024
_ENDINGS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}


class State(Enum):
    """State of a target before the plan is carried out."""

    WHOLE = "there already"
    ABSENT = "not there"
    DANGLING = "a broken link"
    DIFFERS = "other contents"


@dataclass(frozen=True)
class Step:
    """One file of the tree.

    Attributes:
        target: its path.
        source: the source that has it.
        member: the member of the source.
        link: True if it becomes a symbolic link.
        state: state of the target.
    """

    target: Path
    source: Source
    member: Member
    link: bool
    state: State


@dataclass(frozen=True)
class Plan:
    """The steps of preparing a data set.

    Attributes:
        root: folder of the tree.
        steps: one for each file, complete ones included, in the order of reading.
        found: the sources, each with the number of its members that belong to the data set.
        twice: number of files that more than one source has, all of one size; the first source is used.
        dangling: names of broken links in source folders.
        leftovers: temporary files of runs that were killed.
    """

    root: Path
    steps: tuple[Step, ...]
    found: tuple[tuple[Source, int], ...]
    twice: int = 0
    dangling: tuple[str, ...] = ()
    leftovers: tuple[Path, ...] = ()

    @property
    def to_do(self) -> tuple[Step, ...]:
        """Steps whose target is not complete."""
        return tuple(step for step in self.steps if step.state is not State.WHOLE)

    @property
    def targets(self) -> frozenset[Path]:
        """All files that exist once the plan is carried out."""
        return frozenset(step.target for step in self.steps)

    @property
    def states(self) -> Counter[State]:
        """Number of targets in each state."""
        return Counter(step.state for step in self.steps)

    def bytes_needed(self) -> int:
        """Disk space that the plan needs, in whole blocks; an estimate for generated files."""
        return sum(_LINK if step.link else -(-step.member.size // _BLOCK) * _BLOCK for step in self.to_do)

    def require_space(self) -> None:
        """Fail unless the disk has enough space.

        Raises:
            DataError: there is too little space; the message gives the needed and the free space.
        """
        place = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.is_dir())
        free, needed = shutil.disk_usage(place).free, self.bytes_needed()
        if needed > free:
            raise DataError(
                f"{self.root}: not enough space: {needed / 1e9:,.2f} GB are needed, {free / 1e9:,.2f} GB are free. "
                "Choose another --root, free some space, or unpack elsewhere and let this command make links."
            )


def make_plan(recipe: Recipe, sources: Sequence[Source], *, copy: bool = False) -> Plan:
    """Plan the tree of a data set.

    Args:
        recipe: recipe of the data set.
        sources: sources of its files; if two have the same file, the first is used.
        copy: copy files of folders instead of linking to them.

    Raises:
        DataError: a source is damaged or unsafe, two sources disagree about a file, or there is a folder in place
            of a file.
    """
    chosen: dict[str, tuple[Source, Member]] = {}
    found = []
    twice = 0
    for source in sources:
        members = list(source.find(partial(recipe.place, source=source)))
        found.append((source, len(members)))
        for member in members:
            first = chosen.setdefault(member.target, (source, member))
            if first[1] is not member:
                _same(first, (source, member))
                twice += 1
    wanted = frozenset(recipe.choose(chosen.keys()))
    kept = {target: pair for target, pair in chosen.items() if target in wanted}
    disk = _Disk(recipe.root)
    steps = tuple(_step(recipe.root, disk, *pair, copy=copy) for pair in kept.values())
    dangling = [name for source in sources if isinstance(source, FolderSource) for name in source.dangling]
    leftovers = disk.leftovers([step.target for step in steps])
    return Plan(recipe.root, steps, tuple(found), twice, tuple(dangling), tuple(leftovers))


def _same(first: tuple[Source, Member], second: tuple[Source, Member]) -> None:
    one, other = first[1], second[1]
    if one.mark or other.mark or one.size == other.size:
        return
    places = " and ".join(f"{source.path} ({member.size:,} bytes)" for source, member in (first, second))
    raise DataError(
        f"{one.target}: two sources have it with different contents: {places}. Give only the right one."
    )


def _step(root: Path, disk: "_Disk", source: Source, member: Member, *, copy: bool) -> Step:
    target = root / member.target
    link = source.linked and not copy
    return Step(target, source, member, link, disk.state(target, member, link, copy))


class _Disk:
    """The state of a tree; each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, dict[str, os.stat_result]] = {}

    def state(self, target: Path, member: Member, link: bool, copy: bool) -> State:
        """State of a target.

        Raises:
            DataError: the target is a folder.
        """
        there = self._folder(target.parent).get(target.name)
        if there is None:
            return State.ABSENT
        if stat.S_ISDIR(there.st_mode):
            raise DataError(
                f"{target}: a file belongs here, found a folder. Remove it, or choose another --root."
            )
        if stat.S_ISLNK(there.st_mode):
            try:
                there = target.stat()
            except OSError:
                return State.DANGLING
            if link:
                return State.WHOLE if target.readlink() == member.handle else State.DIFFERS
            if copy:
                return State.DIFFERS
        if member.mark is not None:
            return State.WHOLE if is_made(target, member.mark) else State.DIFFERS
        return State.WHOLE if there.st_size == member.size else State.DIFFERS

    def leftovers(self, targets: Iterable[Path]) -> list[Path]:
        """Temporary files, as `sa2depth.atomic.atomic_path` names them, of these targets."""
        found = []
        names: dict[Path, set[tuple[str, str]]] = {}
        for target in targets:
            names.setdefault(target.parent, set()).add((target.stem[:40], target.suffix))
        for folder, known in names.items():
            for name in self._folder(folder):
                match = re.fullmatch(TEMPORARY, name)
                if match and (match["stem"], match["suffix"] or "") in known:
                    found.append(folder / name)
        return found

    def _folder(self, folder: Path) -> dict[str, os.stat_result]:
        if folder not in self._folders:
            entries = {}
            if folder.is_dir():
                with os.scandir(folder) as listing:
                    entries = {entry.name: entry.stat(follow_symlinks=False) for entry in listing}
            elif folder.exists() or folder.is_symlink():
                raise DataError(
                    f"{folder}: a folder belongs here, found a file. Remove it, or choose another --root."
                )
            self._folders[folder] = entries
        return self._folders[folder]


def is_made(path: Path, mark: bytes) -> bool:
    """True if a file is a complete PNG or JPEG that has ``mark`` near its beginning."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        ending = next((end for start, end in _ENDINGS.items() if head.startswith(start)), None)
        if mark not in head or ending is None:
            return False
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending
