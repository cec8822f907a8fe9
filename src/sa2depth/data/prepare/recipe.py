"""A recipe: which files belong to a data set, where they lie in its tree, and where one gets them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.verdict import SplitState


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
        """Where a member belongs.

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
