"""Learning-rate schedules, stepped once per optimiser step.

The released schedule ``(1 - step/total)**0.9`` becomes complex if training continues past its last step; this one is
clamped there.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sa2depth.errors import ConfigError
from sa2depth.values import checked


def polynomial_factor(step: int, total: int, power: float, end_factor: float, warmup_steps: int = 0) -> float:
    """Fraction of the base learning rate at an optimiser step.

    Args:
        step: 0 at the first update; any value is allowed.
        total: number of updates of the whole run.
        power: exponent of the decay.
        end_factor: fraction that is reached at ``total`` and kept from there on.
        warmup_steps: updates over which a linear rise is multiplied with the decay.
    """
    progress = min(step / max(total, 1), 1.0)
    decay = end_factor + (1.0 - end_factor) * (1.0 - progress) ** power
    return decay * min((step + 1) / (warmup_steps + 1), 1.0)


@checked
def polynomial(
    optimizer: Optimizer,
    total_steps: int,
    *,
    power: Annotated[float, Gt(0)] = 0.9,
    end_factor: Annotated[float, Interval(ge=0, le=1)] = 0.1,
    warmup_steps: Annotated[int, Ge(0)] = 0,
) -> LambdaLR:
    """Polynomial decay to ``end_factor`` of each group's own learning rate.

    ``total_steps`` is negative if the length of the run is not known.

    Raises:
        ConfigError: the run has no step, or its length is not known and the rate would change over it, or an argument
            is out of range.
    """
    if total_steps == 0:
        raise ConfigError(
            "the run has no training step: check trainer.max_epochs, max_steps and limit_train_batches, and that there "
            "are enough images for data.batch_size"
        )
    if total_steps < 0 and end_factor != 1:
        raise ConfigError(
            "the schedule needs the number of steps of the run: set trainer.max_epochs or trainer.max_steps, or choose "
            "schedule=constant"
        )
    return LambdaLR(
        optimizer, lambda step: polynomial_factor(step, total_steps, power, end_factor, warmup_steps)
    )
