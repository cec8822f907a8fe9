"""Learning-rate schedules, stepped once an optimiser step.

The released schedule ``(1 - step/total)**0.9`` turns complex when training goes on past its last step; this one is
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
        end_factor: fraction that is reached at ``total`` and kept after it.
        warmup_steps: updates over which the rate rises linearly, multiplied onto the decay.
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

    ``total_steps`` is negative where the run has no known length.

    Raises:
        ConfigError: if the run has no step, or no known length and the rate changes over it, or an argument is out of
            range.
    """
    if total_steps == 0:
        raise ConfigError(
            "the run has no training step: look at trainer.max_epochs, max_steps and limit_train_batches, and at how "
            "many images there are for data.batch_size"
        )
    if total_steps < 0 and end_factor != 1:
        raise ConfigError(
            "the schedule needs to know how many steps the run has: set trainer.max_epochs or trainer.max_steps, or "
            "choose schedule=constant"
        )
    return LambdaLR(
        optimizer, lambda step: polynomial_factor(step, total_steps, power, end_factor, warmup_steps)
    )
