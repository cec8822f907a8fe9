"""The door of the Hydra programs: composes, runs, and prints errors that a user can mend without a traceback."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sa2depth.errors import UserError, nearest
from sa2depth.resources import conf_dir

# Hydra swallows tracebacks and exits by itself unless told otherwise; launch() decides what people see.
_FULL_ERROR = "HYDRA_FULL_ERROR"


def launch(config_name: str, job: Callable[[DictConfig], Any], arguments: Sequence[str] | None = None) -> int:
    """Compose ``conf/CONFIG_NAME.yaml`` with the command line's overrides and run a job on it.

    Args:
        config_name: a file below ``conf/``.
        job: what to run; in a multirun once for each combination.
        arguments: overrides, in place of ``sys.argv``.

    Returns:
        Exit status: 0, or 2 for an error that the user can mend, which is printed. Others are raised.
    """
    os.environ.setdefault(_FULL_ERROR, "1")
    argv = sys.argv
    if arguments is not None:
        sys.argv = [argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
    except UserError as error:
        _complain(_own_words(error))
    except MissingConfigException as error:
        _complain(_missing_choice(error))
    except InstantiationException as error:
        if not isinstance(error.__cause__, UserError | MisconfigurationException | ValueError):
            raise
        _complain(_cannot_build(error))
    except ConfigCompositionException as error:
        _complain(_unknown_override(error, config_name, sys.argv[1:]))
    except (HydraException, OmegaConfBaseException) as error:
        _complain(str(error).strip())
    else:
        return 0
    finally:
        sys.argv = argv
    return 2


def _complain(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")


def _own_words(error: UserError) -> str:
    """The message without the traceback that PyTorch writes into errors of its loader processes."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") and name in text else text


def _cannot_build(error: InstantiationException) -> str:
    """What a class said of its options, and which node of the configuration it was built from."""
    _, _, node = str(error).partition("full_key: ")
    return f"{error.__cause__}{f' (in {node.strip()})' if node else ''}"


def _missing_choice(error: MissingConfigException) -> str:
    options = [str(option) for option in error.options or ()]
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    if not options:
        return str(error)
    return f"there is no {group}={choice}; {nearest(choice, options)}"


def _unknown_override(error: ConfigCompositionException, config_name: str, arguments: Sequence[str]) -> str:
    """The failing override with the names that would have worked, where it can be found."""
    first_line = str(error).strip().split("\n", 1)[0]
    quoted = first_line.split("'")
    if len(quoted) < 2:
        return str(error).strip()
    key = quoted[1].lstrip("+~").split("=", 1)[0]
    return f"unknown option {key}; {nearest(key, _keys(config_name, arguments, key))}"


def _keys(config_name: str, arguments: Sequence[str], without: str) -> list[str]:
    """All keys of the configuration as it is without one override."""
    rest = [
        a
        for a in arguments
        if "=" in a and not a.startswith("-") and a.lstrip("+~").split("=", 1)[0] != without
    ]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            tree = OmegaConf.to_container(compose(config_name, overrides=rest), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return []
    return list(_flat(tree))


def _flat(node: Any, prefix: str = "") -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_"):
                continue  # Hydra's own
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _flat(value, name)
