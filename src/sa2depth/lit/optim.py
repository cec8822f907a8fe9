"""AdamW with a weight decay that applies to weights only.

The released training parses a weight decay and an epsilon and uses neither; it also ignores that the scan marks A_log
and D as exempt from decay. Here norms, biases, A_log and D are exempt, as Mamba and AdamW users expect.
"""

import math
from typing import Annotated

from annotated_types import Interval
from torch import nn
from torch.optim import AdamW, Optimizer

from sa2depth.values import checked

NO_DECAY_LEAVES = ("a_log", "d_skip")
"""Parameter names of the scan that must not decay: zero is not a neutral value for them."""


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] not in NO_DECAY_LEAVES and not name.endswith("bias")


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, encoder_lr_factor: float = 1.0
) -> list[dict[str, object]]:
    """Trainable parameters, split by decay and by whether they belong to ``model.encoder``.

    Args:
        model: the network; every trainable parameter is in exactly one group.
        lr: learning rate of everything outside the encoder.
        weight_decay: decay of the groups that are not exempt.
        encoder_lr_factor: learning rate of the encoder as a fraction of ``lr``.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``; empty ones are left out.
    """
    groups: dict[str, dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.startswith("encoder.") else "decoder"
        decays = _decays(name, parameter)
        key = f"{part}{'' if decays else ', no decay'}"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": lr * (encoder_lr_factor if part == "encoder" else 1.0),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        params = group["params"]
        assert isinstance(params, list)
        params.append(parameter)
    return list(groups.values())


Factor = Annotated[float, Interval(ge=0, lt=math.inf)]
Beta = Annotated[float, Interval(ge=0, lt=1)]


@checked
def adamw(
    model: nn.Module,
    *,
    lr: Factor,
    weight_decay: Factor = 1e-2,
    betas: tuple[Beta, Beta] = (0.9, 0.999),
    eps: Factor = 1e-8,
    encoder_lr_factor: Factor = 1.0,
) -> Optimizer:
    """AdamW over :func:`parameter_groups`; the arguments are those of ``conf/optim/adamw.yaml``.

    Raises:
        ConfigError: ``betas`` are not two numbers in [0, 1), or another number is negative or not finite.
    """
    groups = parameter_groups(model, lr, weight_decay, encoder_lr_factor)
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)
