"""What a prepared tree still lacks, split by split."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sa2depth.data.listing import Listing, files_of, missing_files
from sa2depth.errors import UserError

if TYPE_CHECKING:
    from sa2depth.data.prepare.recipe import Recipe


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


def what_is_missing(recipe: "Recipe", planned: Collection[Path] = ()) -> list[SplitState]:
    """Compare every split of a data set with the disk.

    Args:
        recipe: of the data set.
        planned: files that count as there, for a plan that is not carried out.
    """
    soon = frozenset(planned)
    return [_state(recipe, split, soon) for split in recipe.splits()]


def _state(recipe: "Recipe", split: Callable[[], Listing], soon: frozenset[Path]) -> SplitState:
    try:
        listing = split()
    except UserError as error:
        return SplitState(recipe.title, problem=str(error), later=recipe.searched and bool(soon))
    wanted = files_of(listing.frames)
    missing = tuple(path for path in _absent(wanted) if path not in soon)
    origins = Counter(recipe.origin(path) for path in missing)
    return SplitState(listing.title, len(listing.frames), len(wanted), missing, origins)


def _absent(paths: Iterable[Path]) -> list[Path]:
    """Those that are not there, links that lead nowhere included."""
    paths = list(paths)
    gone = set(missing_files(paths))
    return [path for path in paths if path in gone or (path.is_symlink() and not path.exists())]
