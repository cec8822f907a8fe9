"""The entry point of the Hydra programs: compose, run, and print errors that a user can fix without a traceback."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from omegaconf import DictConfig

from sa2depth.config.explained import explained
from sa2depth.config.folders import at_the_end
from sa2depth.config.sweeps import Sweep
from sa2depth.output import patient_output
from sa2depth.resources import conf_dir

# Hydra swallows tracebacks and exits by itself unless told otherwise; launch() decides what people see.
_FULL_ERROR = "HYDRA_FULL_ERROR"


def launch(config_name: str, job: Callable[[DictConfig], Any], arguments: Sequence[str] | None = None) -> int:
    """Compose ``conf/CONFIG_NAME.yaml`` with the command line's overrides and run a job on it.

    Args:
        config_name: a file below ``conf/``.
        job: function to run; a multirun calls it once for each combination.
        arguments: overrides, in place of ``sys.argv``.

    Returns:
        Exit status: 0; 2 for an error that the user can fix, which is printed (a full disk or memory is one, too); 130
        after Ctrl-C. Other errors are raised. A sweep runs all its jobs and names those that failed; its status is 2
        if the user can fix all of these errors, else 1.
    """
    os.environ.setdefault(_FULL_ERROR, "1")
    argv = sys.argv
    given = argv[1:] if arguments is None else list(arguments)
    sweep = Sweep(job, lambda error: explained(error, job, config_name, given))
    status = 2
    try:
        sys.argv = [argv[0], *given]
        with patient_output(), at_the_end:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(
                sweep.task()
            )()
        status = 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except Exception as error:
        message = explained(error, job, config_name, given)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
    finally:
        sys.argv = argv
        failed = sweep.report()
    return status or failed
