"""Errors for people: each says what was wrong, where, and what to do.

The command-line programs print these without a traceback; anything else is a bug and keeps its traceback.
"""


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
