"""A recipe: which files belong to a data set, where they lie in its tree, and where one gets them; a split's state."""

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
        title: what people are told it is.
        frames: number of images it holds.
        files: number of files it needs.
        missing: those that are not there, dangling links included.
        origins: archive to number of missing files that it holds.
        problem: why the split cannot even be listed, e.g. because nothing of it was found.
        later: whether that is only because the plan has not been carried out.
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
        """Whether every file is there, or nothing is known to be absent."""
        return not self.missing and (self.later or not self.problem)


@dataclass(frozen=True)
class Recipe(ABC):
    """How one data set is prepared.

    Attributes:
        root: folder of the tree, as the functions of `sa2depth.data.sets` take it.
        title: what people are told it is.
        archives: what to give as sources.
        archive: the one that holds every file, where there is one.
        searched: whether a split is what is found in the tree, so that a plan alone cannot tell whether it is whole.
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
            name: of the member, with ``/`` between folders; absolute in folders.
            source: that holds it.

        Returns:
            A path below ``root``; None where it does not belong to the data set.
        """

    def choose(self, targets: Collection[str]) -> Collection[str]:
        """Those of all targets found that are wanted; all, unless what is wanted depends on what is found."""
        return targets

    @abstractmethod
    def splits(self) -> Sequence[Callable[[], Listing]]:
        """One function for each split, which gives what it should hold; a `DataError` means that it is not usable."""

    def origin(self, path: Path) -> str:
        """The archive that holds a missing file."""
        return self.archive

    def enough(self, states: Sequence[SplitState]) -> bool:
        """Whether the data set is complete; every split must be, unless one will do."""
        return all(state.complete for state in states)

    def open_file(self, path: Path) -> Source | None:
        """A file of a kind that only this recipe reads, as a source; None for other files."""
        return None

    def below(self, folder: Path) -> str:
        """A folder of the tree as a prefix of targets: empty, or ending with ``/``."""
        inner = folder.relative_to(self.root).as_posix()
        return "" if inner == "." else f"{inner}/"
