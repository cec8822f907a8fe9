"""Explain errors of Hydra, OmegaConf and the operating system: which option is wrong, and what to type."""

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser  # noqa: PLC2701
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sa2depth.errors import ConfigError, UserError, nearest
from sa2depth.limits import told_limit
from sa2depth.quoting import argument, hydra_quoted
from sa2depth.resources import conf_dir
from sa2depth.targets import find

_OPTION = re.compile(r"(?P<option>\+{0,2}[\w.@/$:-]+)=(?P<value>.*)", re.DOTALL)
_OPENING, _CLOSING = "[{(", "]})"


def explained(
    error: Exception, job: Callable[[DictConfig], Any], config_name: str, given: Sequence[str]
) -> str | None:
    """The message for an error that a user can fix; None for any other. `sa2depth.config.launch.launch` prints it."""
    match error:
        case UserError():
            return _own_words(error)
        case MissingConfigException():
            return _missing_choice(error)
        case InstantiationException():
            expected = UserError | MisconfigurationException | ValueError | TypeError
            built = isinstance(error.__cause__, expected)
            return _cannot_build(error) if built else told_limit(error.__cause__ or error)
        case OSError() if _making_a_folder(job, error):
            return _no_folder(error, given)
        case OverrideParseException():
            return _refused(error, config_name)
        case ConfigCompositionException():
            said = str(error)
            return (
                _several_values(said, list(given)) or _not_chosen(said) or _unknown(error, config_name, given)
            )
        case HydraException() | OmegaConfBaseException():
            return str(error).strip()
    return told_limit(error)


def _own_words(error: UserError) -> str:
    """The message without the traceback that PyTorch writes into errors of its loader processes."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") and name in text else text


def _cannot_build(error: InstantiationException) -> str:
    """The error of a class about its options, with its node in the configuration and, if useful, the line of code."""
    _, _, node = str(error).partition("full_key: ")
    cause = error.__cause__
    text = f"{cause}{f' (in {node.strip()})' if node else ''}"
    if not isinstance(cause, TypeError):
        return text
    # a TypeError was not written for people, and may be a mistake in the user's own class
    *_, last = traceback.extract_tb(cause.__traceback__)
    return f"{' '.join(text.split())}, raised in {last.filename}:{last.lineno}"


def _making_a_folder(job: Callable[[DictConfig], Any], error: BaseException) -> bool:
    """Whether Hydra could not make a folder, before it ran the job."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return getattr(job, "__code__", None) not in codes and any(code.co_name == "mkdir" for code in codes)


def _no_folder(error: OSError, arguments: Sequence[str]) -> str:
    """The message about a folder that Hydra could not make for the run, with the option that named it."""
    given = dict(a.lstrip("+").split("=", 1) for a in arguments if "=" in a)
    option = next(
        (name for name in ("hydra.run.dir", "hydra.sweep.dir", "paths.runs_dir") if name in given), None
    )
    folder = f"{option}={given[option]}" if option else f"the run's folder {error.filename}"
    advice = f"choose another with {option or 'paths.runs_dir'}=FOLDER"
    return f"{folder} cannot be created ({error.strerror or error}); {advice}"


def _missing_choice(error: MissingConfigException) -> str:
    # the base of a family of experiments is not an experiment itself
    options = [str(option) for option in error.options or () if not str(option).endswith("_base")]
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    if not options:
        return str(error)
    return f"there is no {group}={choice}; {nearest(choice, options)}"


def _refused(error: OverrideParseException, program: str) -> str:
    """The message about a value that Hydra's grammar refused, with its option and how to quote it."""
    given = str(error.override)
    said = str(error).strip().splitlines()
    found = _OPTION.fullmatch(given)
    if found is None:
        name = given.lstrip("+~").split("=", 1)[0]
        return f"{given} is not an option: write OPTION=VALUE; {nearest(name, _options(program))}"
    reason = next((line for line in said if line and not line.startswith(("Error parsing", "See http"))), "")
    advice = _advice(found["option"], found["value"])
    return (
        f"{given}: Hydra's grammar refuses this value of {found['option'].lstrip('+')} ({reason}); {advice}"
    )


def _several_values(message: str, overrides: list[str]) -> str | None:
    """The message for several values where one was expected; None if Hydra's message is about something else."""
    if "--multirun" not in message:
        return None
    for given in overrides:
        found = _OPTION.fullmatch(given)
        if found is None or f"'{given}'" not in message:
            continue
        option, value = found["option"], found["value"]
        return (
            f"{given} means several values of {option.lstrip('+')}, one run each, which needs -m (--multirun); "
            f"to give one value, type {_typed(option, hydra_quoted(value))}"
        )
    return None


def _not_chosen(message: str) -> str | None:
    """The message for a group without a default; None if Hydra's message is about something else."""
    if not message.startswith("You must specify '"):
        return None
    _, group, said = message.split("'", 2)
    choices = [f"{group}={line.strip()}" for line in said.splitlines()[2:]]
    return f"{group} has no default here: choose one of {', '.join(choices)}"


def _unknown(error: ConfigCompositionException, program: str, arguments: Sequence[str]) -> str:
    """The message for an override of an unknown option, with the nearest names of this program."""
    quoted = str(error).strip().split("\n", 1)[0].split("'")
    if len(quoted) < 2:
        return str(error).strip()
    key = _name(quoted[1])
    value = next((a.partition("=")[2] for a in arguments if _name(a) == key), "VALUE")
    known = _composed(program, arguments, key)
    if quoted[0].startswith("Could not append"):
        return f"{key} is already there: leave out the plus, {_typed(key, value)}"
    if (target := _taker(key, known)) is not None:
        return f"{key} is not in the configuration, but {target} has it: add it with a plus, {_typed(f'+{key}', value)}"
    own = any(a.lstrip("+").startswith(f"{key.rpartition('.')[0]}._target_=") for a in arguments)
    added = f"; to add an option of the class that you named, type a plus: +{key}={value}" if own else ""
    return f"unknown option {key}; {nearest(key, list(_flat(known)))}{added}"


def _taker(option: str, composed: Any) -> str | None:
    """The class of an option's node if it has the option with a default, so that the configuration need not set it."""
    *path, name = option.split(".")
    for part in path:
        composed = composed.get(part) if isinstance(composed, dict) else None
    target = composed.get("_target_") if isinstance(composed, dict) else None
    try:
        parameter = inspect.signature(find(str(target))).parameters.get(name)
    except (ConfigError, TypeError, ValueError):
        return None
    return str(target) if parameter and parameter.default is not inspect.Parameter.empty else None


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _options(program: str) -> list[str]:
    return list(_flat(_composed(program)))


def _composed(program: str, arguments: Sequence[str] = (), without: str = "") -> Any:
    """The configuration of a program with the overrides of a command line, except for one override."""
    rest = [a for a in arguments if "=" in a and not a.startswith("-") and _name(a) != without]
    if own := get_args_parser().parse_known_args(list(arguments))[0].config_dir:
        rest.append(f"hydra.searchpath=[{hydra_quoted(f'file://{Path(own).absolute()}')}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return OmegaConf.to_container(compose(program, overrides=rest), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return {}


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        if not str(key).startswith("_"):  # keys with _ are Hydra's own
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")


def _advice(option: str, value: str) -> str:
    """Say how to quote a value: items of a list one by one, anything else as a whole."""
    if value.startswith("[") and value.endswith("]"):
        items = ",".join(
            item if _understood(f"{option}=[{item}]") else hydra_quoted(item) for item in _items(value[1:-1])
        )
        if _understood(f"{option}=[{items}]"):
            return f"quote its items for Hydra and the whole for the shell: {_typed(option, f'[{items}]')}"
    return f"quote it for Hydra and for the shell: {_typed(option, hydra_quoted(value))}"


def _items(text: str) -> list[str]:
    """Items of a list as typed; text within inner brackets stays together."""
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
