"""The entry point of the Hydra programs: composes, runs, and prints errors that a user can fix without a traceback."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sa2depth.config.cluster import is_distributed, note_of_independence, started
from sa2depth.config.overrides import refused, several_values
from sa2depth.config.sweeps import Sweep
from sa2depth.errors import UserError, nearest
from sa2depth.limits import told_limit
from sa2depth.output import patient_output
from sa2depth.quoting import hydra_quoted
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
        Exit status: 0, or 2 for an error that the user can fix, which is printed; what the machine has run out of is
        one, too. Others are raised. A sweep runs all its jobs, names those that failed, and ends with 2 if every one of
        them is an error that the user can fix, else with 1. 130 after Ctrl-C.
    """
    os.environ.setdefault(_FULL_ERROR, "1")
    argv = sys.argv
    given = argv[1:] if arguments is None else list(arguments)
    sweep = Sweep(job, lambda error: _explained(error, job, config_name, given))
    status = 2
    try:
        with patient_output(), _in_its_place(config_name, given) as places:
            sys.argv = [argv[0], *given, *places]
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(
                sweep.task()
            )()
        status = 0
    except KeyboardInterrupt:
        _complain("interrupted", label="")
        return 128 + signal.SIGINT
    except Exception as error:
        message = _explained(error, job, config_name, given)
        if message is None:
            raise
        _complain(message)
    finally:
        sys.argv = argv
        failed = sweep.report()
    return status or failed


def _explained(
    error: Exception, job: Callable[[DictConfig], Any], config_name: str, given: Sequence[str]
) -> str | None:
    """The message for an error that a user can fix; None for any other."""
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
            return refused(error, _keys(config_name, [], ""))
        case ConfigCompositionException():
            return several_values(str(error), list(given)) or _unknown_override(error, config_name, given)
        case HydraException() | OmegaConfBaseException():
            return str(error).strip()
    return told_limit(error)


@contextmanager
def _in_its_place(program: str, arguments: Sequence[str]) -> Iterator[list[str]]:
    """Overrides by which the second and later process of one run makes no run folder of its own.

    ``torchrun`` and ``srun`` start all processes alike, each with its own time in the folder's name; the run's folder
    is that of the first, which `sa2depth.run.results.finish` tells to the others. Lightning's own launcher passes the
    folder on. A process whose run asks for one device is no part of such a run, whatever number it inherited.
    """
    found, inherited = started(), getattr(rank_zero_only, "rank", 0)
    if found is None or found.processes < 2:
        yield []
        return
    cfg = _composed(program, arguments)
    if cfg is None or not is_distributed(cfg):
        if cfg is not None and (note := note_of_independence(cfg)):
            sys.stderr.write(f"note: {note}\n")
        # Lightning has read the number when it was imported, and would print and log nothing
        setattr(rank_zero_only, "rank", 0)  # noqa: B010
        try:
            yield []
        finally:
            setattr(rank_zero_only, "rank", inherited)  # noqa: B010
        return
    if found.rank == 0:
        yield []
        return
    options = {a.lstrip("+").partition("=")[0] for a in arguments}
    places = {"hydra.output_subdir": "null", "hydra.job.name": f"{program}_process_{found.rank}"}
    with TemporaryDirectory(prefix="sa2depth_", ignore_cleanup_errors=True) as folder:
        places["hydra.run.dir"] = f"'{folder}'"
        yield [f"{key}={value}" for key, value in places.items() if key not in options]


def _composed(program: str, arguments: Sequence[str]) -> DictConfig | None:
    """The configuration that a command line asks for; None for a sweep, and for one that cannot be composed."""
    try:
        flags = get_args_parser().parse_known_args(list(arguments))[0]
        if flags.multirun:
            return None
        with initialize_config_dir(str(flags.config_path or conf_dir()), version_base="1.3"):
            return compose(
                flags.config_name or program, overrides=[*flags.overrides, *_own_files(flags.config_dir)]
            )
    except (SystemExit, HydraException, OmegaConfBaseException, OSError):
        return None
    finally:
        GlobalHydra.instance().clear()


def _complain(message: str, label: str = "error: ") -> None:
    sys.stderr.write(f"{label}{message}\n")


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
    value = next((a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")), "VALUE")
    own = any(a.lstrip("+").startswith(f"{key.rpartition('.')[0]}._target_=") for a in arguments)
    added = f"; an option of the class that you named is added with a plus: +{key}={value}" if own else ""
    return f"unknown option {key}; {nearest(key, _keys(config_name, arguments, key))}{added}"


def _keys(config_name: str, arguments: Sequence[str], without: str) -> list[str]:
    """All keys of the configuration as it is without one override."""
    rest = [
        a
        for a in arguments
        if "=" in a and not a.startswith("-") and a.lstrip("+~").split("=", 1)[0] != without
    ]
    rest += _own_files(get_args_parser().parse_known_args(list(arguments))[0].config_dir)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            tree = OmegaConf.to_container(compose(config_name, overrides=rest), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return []
    return list(_flat(tree))


def _own_files(folder: str | None) -> list[str]:
    """The override by which a folder of the user's own configuration files is found, as ``--config-dir`` names it."""
    return [f"hydra.searchpath=[{hydra_quoted(f'file://{Path(folder).absolute()}')}]"] if folder else []


def _flat(node: Any, prefix: str = "") -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_"):
                continue  # Hydra's own
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _flat(value, name)
