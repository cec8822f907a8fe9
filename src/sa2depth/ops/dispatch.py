"""The choice of an operator's implementation for one call.

``auto`` chooses the first implementation that can take the arguments and has passed its self-test; a name chooses that
back end or raises an error that says why it cannot. If the chosen implementation fails, it raises: nothing falls back
after a launch.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sa2depth.errors import ConfigError
from sa2depth.ops import choice
from sa2depth.ops.autograd import wants_gradient
from sa2depth.ops.registry import Operator
from sa2depth.ops.runtime.notices import say_once
from sa2depth.ops.trust import why_not_trusted

_log = logging.getLogger(__name__)


def choose(operator: Operator, *arguments: Any) -> Callable[..., Tensor]:
    """The implementation of an operator for these arguments, the first of which is a tensor.

    Raises:
        ConfigError: if the back end was chosen by name and cannot take them.
    """
    asked = choice.backend()
    # only torch's own operators propagate the tangents of dual numbers
    forward_mode = forward_ad._current_level >= 0
    oracle = operator.backends[-1].run
    if asked == "torch" or (asked == "auto" and forward_mode):
        return oracle
    device = arguments[0].device
    for backend in operator.backends[:-1]:
        if asked not in ("auto", backend.name) or (backend.inference_only and wants_gradient(*arguments)):
            continue
        # on the CPU Triton has only a slow interpreter, for testing kernels
        if asked == "auto" and (backend.on_request or (backend.name == "triton" and device.type == "cpu")):
            continue
        reason = backend.why_not(*arguments)
        if asked == backend.name:
            if forward_mode:
                reason = "it has no derivatives in forward mode"
            if reason:
                raise ConfigError(
                    f"{operator.name}: the back end '{asked}' was chosen, but {reason}; use auto or torch"
                )
        elif not reason:
            reason = why_not_trusted(operator.name, backend.name, device)
            if reason:
                say_once(operator.name, reason)
        if not reason:
            return backend.run
        if not torch.compiler.is_compiling():
            _log.debug("%s does not run on the back end %s: %s", operator.name, backend.name, reason)
    return oracle
