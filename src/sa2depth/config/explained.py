"""Errors of Hydra, OmegaConf and the operating system, as people can use them: which option, and what to type."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sa2depth.config.overrides import not_chosen, refused, several_values, unknown
from sa2depth.errors import UserError, nearest
from sa2depth.limits import told_limit


def explained(
    error: Exception, job: Callable[[DictConfig], Any], config_name: str, given: Sequence[str]
) -> str | None:
    """The message for an error that a user can fix; None for any other. See `sa2depth.config.launch.launch`."""
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
            return refused(error, config_name)
        case ConfigCompositionException():
            said = str(error)
            return several_values(said, list(given)) or not_chosen(said) or unknown(error, config_name, given)
        case HydraException() | OmegaConfBaseException():
            return str(error).strip()
    return told_limit(error)


def _own_words(error: UserError) -> str:
    """The message without the traceback that PyTorch writes into errors of its loader processes."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") and name in text else text


def _cannot_build(error: InstantiationException) -> str:
    """What a class said of its options, which node of the configuration it was built from, and where it said so."""
    _, _, node = str(error).partition("full_key: ")
    cause = error.__cause__
    text = f"{cause}{f' (in {node.strip()})' if node else ''}"
    if not isinstance(cause, TypeError):
        return text
    # not a message that was written for people, perhaps a mistake in a class of the user's own
    *_, last = traceback.extract_tb(cause.__traceback__)
    return f"{' '.join(text.split())}, says {last.filename}:{last.lineno}"


def _making_a_folder(job: Callable[[DictConfig], Any], error: BaseException) -> bool:
    """Whether it was Hydra that could not make a folder, before it came to the job."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return getattr(job, "__code__", None) not in codes and any(code.co_name == "mkdir" for code in codes)


def _no_folder(error: OSError, arguments: Sequence[str]) -> str:
    """Which option named a folder that Hydra could not make for the run."""
    given = dict(a.lstrip("+").split("=", 1) for a in arguments if "=" in a)
    option = next(
        (name for name in ("hydra.run.dir", "hydra.sweep.dir", "paths.runs_dir") if name in given), None
    )
    folder = f"{option}={given[option]}" if option else f"the run's folder {error.filename}"
    advice = f"choose another with {option or 'paths.runs_dir'}=FOLDER"
    return f"{folder} cannot be created ({error.strerror or error}); {advice}"


def _missing_choice(error: MissingConfigException) -> str:
    # a base of a family of experiments is no experiment
    options = [str(option) for option in error.options or () if not str(option).endswith("_base")]
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    if not options:
        return str(error)
    return f"there is no {group}={choice}; {nearest(choice, options)}"
