"""An option that is ``auto``, true or false: whether the network runs in another form, and where the reason is told."""

import logging
from typing import Literal

import torch

from sa2depth.errors import ConfigError

_log = logging.getLogger(__name__)

Switch = bool | Literal["auto"]


def checked(option: str, value: Switch) -> Switch:
    """The value of an option.

    Raises:
        ConfigError: it is something else.
    """
    if value not in (True, False, "auto"):
        raise ConfigError(f"{option}={value}: choose auto, true or false")
    return value


def tell(device: torch.device, message: str, reason: str) -> None:
    """Log how the network runs; on a CPU, where nobody expects another form, for debugging only."""
    _log.log(logging.INFO if device.type == "cuda" else logging.DEBUG, message, reason)
