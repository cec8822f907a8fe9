"""Values as they must be typed on a command line: for Hydra, which has a grammar of its own, and for the shell."""

import os
import re
import shlex

_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)
_WORDS = {"null", "true", "false", "nan", "inf"}


def hydra_quoted(value: str) -> str:
    """A value in the double quotes of Hydra's grammar, which takes any text so; an interpolation stays text, too."""
    escaped = re.sub(r'(\\*)"', lambda found: found[1] * 2 + r"\"", value)
    escaped = re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped)
    # OmegaConf's rule for `${`, where backslashes before it count double
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", escaped)
    return f'"{escaped}"'


def override(key: str, value: str | os.PathLike[str]) -> str:
    """``KEY=VALUE`` to be pasted into a shell, quoted only where that is needed.

    Args:
        key: An option.
        value: Text, mostly a path; it arrives as it is, whatever characters it holds.
    """
    text = os.fspath(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return argument(f"{key}={text if plain else hydra_quoted(text)}")


def argument(text: str | os.PathLike[str]) -> str:
    """One argument of a command to be pasted into a shell, quoted only where that is needed."""
    return shlex.quote(os.fspath(text))
