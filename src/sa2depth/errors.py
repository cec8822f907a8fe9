"""Errors for people: each says what is wrong, where, and what to do.

The command-line programs print these without a traceback; any other error is a bug and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class UserError(Exception):
    """An error that the user can fix."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot work: an unknown key, a missing choice, values that contradict each other."""


class DataError(UserError):
    """A file of a data set that is missing, unreadable or wrong."""


class CheckpointError(UserError):
    """Weights that do not belong to the model they are loaded into, or a file that is not a checkpoint."""


class ShapeError(UserError, ValueError):
    """A tensor of the wrong shape, type or range."""


def nearest(word: object, known: Iterable[object]) -> str:
    """Suggest names for a misspelt one: ``did you mean a or b? Choose one of a, b, c``; long lists are left out."""
    names = sorted({str(name) for name in known})
    close = get_close_matches(str(word), names, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if len(names) <= 20 or not close:
        choose = "Choose" if close else "choose"
        hints.append(f"{choose} one of {', '.join(names[:40])}" if names else "there are none")
    return " ".join(hints)


def as_typed(value: object) -> str:
    """A value as people type it after an option: ``null``, ``true``, ``[0.9,0.95]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    return str(value)
