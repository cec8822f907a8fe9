"""Errors for people: each says what was wrong, where, and what to do.

The command-line programs print these without a traceback; anything else is a bug and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot mean anything: an unknown key, a missing choice, values that clash."""


class DataError(UserError):
    """A file of a data set that is missing, unreadable or not what it should be."""


class CheckpointError(UserError):
    """Weights that do not belong to the model they are loaded into, or a file that is no checkpoint."""


class ShapeError(UserError, ValueError):
    """A tensor of the wrong shape, type or range."""


def nearest(word: object, known: Iterable[object]) -> str:
    """What a misspelt name may have meant: ``did you mean a or b? (known: a, b, c)``, the list only if it is short."""
    names = sorted({str(name) for name in known})
    close = get_close_matches(str(word), names, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if len(names) <= 20 or not close:
        hints.append(f"(known: {', '.join(names[:40]) or 'none'})")
    return " ".join(hints)


def as_typed(value: object) -> str:
    """A value as people type it behind an option: ``null``, ``true``, ``[0.9,0.95]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    return str(value)
