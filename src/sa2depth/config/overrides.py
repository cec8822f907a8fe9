"""Overrides that Hydra refuses, with the name or the form that it takes."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sa2depth.errors import nearest
from sa2depth.quoting import argument, hydra_quoted
from sa2depth.resources import conf_dir

_OPTION = re.compile(r"(?P<option>\+{0,2}[\w.@/$:-]+)=(?P<value>.*)", re.DOTALL)
_OPENING, _CLOSING = "[{(", "]})"


def refused(error: OverrideParseException, program: str) -> str:
    """What Hydra's grammar refused, which option it was for, and how to quote it.

    Args:
        error: What Hydra raised.
        program: Whose options are the nearest ones, for an argument that is no override at all.
    """
    given = str(error.override)
    said = str(error).strip().splitlines()
    found = _OPTION.fullmatch(given)
    if found is None:
        name = given.lstrip("+~").split("=", 1)[0]
        return f"{given} is no option: write OPTION=VALUE; {nearest(name, _options(program))}"
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


def not_chosen(message: str) -> str | None:
    """The message for a group without a default; None: Hydra's message is about something else."""
    if not message.startswith("You must specify '"):
        return None
    _, group, said = message.split("'", 2)
    choices = [f"{group}={line.strip()}" for line in said.splitlines()[2:]]
    return f"{group} has no default here and must be chosen: {', '.join(choices)}"


def unknown(error: ConfigCompositionException, program: str, arguments: Sequence[str]) -> str:
    """The failing override with the names that would have worked in this program, where it can be found."""
    quoted = str(error).strip().split("\n", 1)[0].split("'")
    if len(quoted) < 2:
        return str(error).strip()
    key = _name(quoted[1])
    value = next((a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")), "VALUE")
    own = any(a.lstrip("+").startswith(f"{key.rpartition('.')[0]}._target_=") for a in arguments)
    added = f"; an option of the class that you named is added with a plus: +{key}={value}" if own else ""
    return f"unknown option {key}; {nearest(key, _options(program, arguments, key))}{added}"


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _options(program: str, arguments: Sequence[str] = (), without: str = "") -> list[str]:
    """All options of a program as a command line makes it, but for one override."""
    rest = [a for a in arguments if "=" in a and not a.startswith("-") and _name(a) != without]
    if own := get_args_parser().parse_known_args(list(arguments))[0].config_dir:
        rest.append(f"hydra.searchpath=[{hydra_quoted(f'file://{Path(own).absolute()}')}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return list(_flat(OmegaConf.to_container(compose(program, overrides=rest), resolve=False)))
    except (HydraException, OmegaConfBaseException):
        return []


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        if not str(key).startswith("_"):  # Hydra's own
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")


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
