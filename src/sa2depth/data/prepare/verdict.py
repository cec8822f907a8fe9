"""The files that a prepared tree still lacks, split by split."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from sa2depth.data.listing import Listing, files_of, missing_files
from sa2depth.data.prepare.recipe import Recipe, SplitState
from sa2depth.errors import UserError


def what_is_missing(recipe: Recipe, planned: Collection[Path] = ()) -> list[SplitState]:
    """Compare every split of a data set with the disk.

    Args:
        recipe: recipe of the data set.
        planned: files that count as existing, for a plan that is not carried out.
    """
    soon = frozenset(planned)
    return [_state(recipe, split, soon) for split in recipe.splits()]


def _state(recipe: Recipe, split: Callable[[], Listing], soon: frozenset[Path]) -> SplitState:
    try:
        listing = split()
    except UserError as error:
        return SplitState(recipe.title, problem=str(error), later=recipe.searched and bool(soon))
    wanted = files_of(listing.frames)
    missing = tuple(path for path in _absent(wanted) if path not in soon)
    origins = Counter(recipe.origin(path) for path in missing)
    return SplitState(listing.title, len(listing.frames), len(wanted), missing, origins)


def _absent(paths: Iterable[Path]) -> list[Path]:
    """The paths that do not exist, broken links included."""
    paths = list(paths)
    gone = set(missing_files(paths))
    return [path for path in paths if path in gone or (path.is_symlink() and not path.exists())]
