"""Quote values for a command line: for Hydra, which has a grammar of its own, and for the shell."""

import os
import re
import shlex

_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)
_WORDS = {"null", "true", "false", "nan", "inf"}


def hydra_quoted(value: str) -> str:
    """Quote any text in the double quotes of Hydra's grammar; an interpolation in it stays text."""
    escaped = re.sub(r'(\\*)"', lambda found: found[1] * 2 + r"\"", value)
    escaped = re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped)
    # OmegaConf needs twice the backslashes before `${`
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", escaped)
    return f'"{escaped}"'


def override(key: str, value: str | os.PathLike[str]) -> str:
    """``KEY=VALUE`` to be pasted into a shell, quoted only if necessary.

    Args:
        key: An option.
        value: Text, mostly a path; it arrives unchanged, whatever characters it holds.
    """
    text = os.fspath(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return argument(f"{key}={text if plain else hydra_quoted(text)}")


def argument(text: str | os.PathLike[str]) -> str:
    """One argument of a command to be pasted into a shell, quoted only if necessary."""
    return shlex.quote(os.fspath(text))
