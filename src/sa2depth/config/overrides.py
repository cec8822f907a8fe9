"""Overrides that Hydra's grammar refuses, with the form that it takes."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException

from sa2depth.errors import nearest
from sa2depth.quoting import argument, hydra_quoted

_OPTION = re.compile(r"(?P<option>\+{0,2}[\w.@/$:-]+)=(?P<value>.*)", re.DOTALL)
_OPENING, _CLOSING = "[{(", "]})"


def refused(error: OverrideParseException, options: list[str]) -> str:
    """What Hydra's grammar refused, which option it was for, and how to quote it.

    Args:
        error: What Hydra raised.
        options: The names that there are, for an argument that is no override at all.
    """
    given = str(error.override)
    said = str(error).strip().splitlines()
    found = _OPTION.fullmatch(given)
    if found is None:
        name = given.lstrip("+~").split("=", 1)[0]
        return f"{given} is no option: write OPTION=VALUE; {nearest(name, options)}"
    reason = next((line for line in said if line and not line.startswith(("Error parsing", "See http"))), "")
    advice = _advice(found["option"], found["value"])
    return (
        f"{given}: Hydra's grammar refuses this value of {found['option'].lstrip('+')} ({reason}); {advice}"
    )


def several_values(message: str, overrides: list[str]) -> str | None:
    """The message for a list of values where one was expected; None: the error is about something else.

    Args:
        message: Hydra's.
        overrides: The command line's.
    """
    if "--multirun" not in message:
        return None
    for given in overrides:
        found = _OPTION.fullmatch(given)
        if found is None or f"'{given}'" not in message:
            continue
        option, value = found["option"], found["value"]
        return (
            f"{given} means several values of {option.lstrip('+')}, one run each, which needs -m (--multirun); "
            f"one value is typed {_typed(option, hydra_quoted(value))}"
        )
    return None


def _advice(option: str, value: str) -> str:
    """How to type what was meant: items of a list are quoted one by one, anything else as a whole."""
    if value.startswith("[") and value.endswith("]"):
        items = ",".join(
            item if _understood(f"{option}=[{item}]") else hydra_quoted(item) for item in _items(value[1:-1])
        )
        if _understood(f"{option}=[{items}]"):
            return f"quote its items for Hydra and all of it for the shell: {_typed(option, f'[{items}]')}"
    return f"quote it for Hydra and for the shell: {_typed(option, hydra_quoted(value))}"


def _items(text: str) -> list[str]:
    """Items of a list as typed, those within inner brackets together."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and depth <= 0:
            items.append("")
        else:
            items[-1] += letter
    return items


def _typed(option: str, value: str) -> str:
    return argument(f"{option}={value}")


def _understood(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True
