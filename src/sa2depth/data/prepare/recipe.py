"""A recipe names the files of a data set, their places in its tree and their archives; and the state of a split."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source


@dataclass(frozen=True)
class SplitState:
    """One split after preparing.

    Attributes:
        title: its name in messages.
        frames: number of images it holds.
        files: number of files it needs.
        missing: files that do not exist, broken links included.
        origins: number of missing files for each archive that holds them.
        problem: reason why the split cannot even be listed, e.g. because none of its files was found.
        later: True if that is only because the plan has not been carried out.
    """

    title: str
    frames: int = 0
    files: int = 0
    missing: tuple[Path, ...] = ()
    origins: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    later: bool = False

    @property
    def complete(self) -> bool:
        """True if every file exists, or none is known to be missing."""
        return not self.missing and (self.later or not self.problem)


@dataclass(frozen=True)
class Recipe(ABC):
    """The rules for preparing one data set.

    Attributes:
        root: folder of the tree, as the functions of `sa2depth.data.sets` take it.
        title: its name in messages.
        archives: the sources to give, in words.
        archive: the one that holds every file, if there is one.
        searched: True if a split holds all that is found in the tree: then a plan alone cannot tell if it is complete.
        own_files: names of files that only this recipe reads.
    """

    root: Path

    title: ClassVar[str]
    archives: ClassVar[str]
    archive: ClassVar[str] = ""
    searched: ClassVar[bool] = False
    own_files: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def place(self, name: str, source: Source) -> str | None:
        """The place of a member.

        Args:
            name: name of the member, with ``/`` between folders; absolute in folders.
            source: the source that holds it.

        Returns:
            A path below ``root``; None if it does not belong to the data set.
        """

    def choose(self, targets: Collection[str]) -> Collection[str]:
        """The wanted ones among all targets found: all, unless the choice depends on what was found."""
        return targets

    @abstractmethod
    def splits(self) -> Sequence[Callable[[], Listing]]:
        """One function for each split, which returns its listing; a `DataError` means that it is not usable."""

    def origin(self, path: Path) -> str:
        """The archive that holds a missing file."""
        return self.archive

    def enough(self, states: Sequence[SplitState]) -> bool:
        """True if the data set is complete; every split must be, unless one is enough."""
        return all(state.complete for state in states)

    def open_file(self, path: Path) -> Source | None:
        """A file of a kind that only this recipe reads, as a source; None for other files."""
        return None

    def below(self, folder: Path) -> str:
        """A folder of the tree as a prefix of targets: empty, or ending with ``/``."""
        inner = folder.relative_to(self.root).as_posix()
        return "" if inner == "." else f"{inner}/"
