"""Warnings about a machine that are logged once in a process."""

import logging

_log = logging.getLogger(__name__)

_said: set[tuple[str, str]] = set()


def say_once(operator: str, reason: str) -> None:
    """Warn, once in a process, about a fast path that this machine could have but does not."""
    if (operator, reason) not in _said:
        _said.add((operator, reason))
        _log.warning("%s is slower here than it could be: %s", operator, reason)
