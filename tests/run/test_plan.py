"""What the plan says of how a step is computed."""

import pytest
from omegaconf import OmegaConf
from torch import nn

from sa2depth import create_model
from sa2depth.models.checkpointing import checkpoint_layers
from sa2depth.run.plan import describe_ways

AS_SHIPPED = {"ops": None, "float32_matmul_precision": "highest", "compile": "auto", "cuda_graph": "auto"}


def ways(model=None, **chosen):
    return describe_ways(OmegaConf.create({**AS_SHIPPED, **chosen}), model or nn.Identity())


def test_nothing_was_chosen():
    assert ways() == {}


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"ops": "torch"}, "operators: torch"),
        ({"compile": False, "cuda_graph": True}, "compile: false; CUDA graphs: true"),
        ({"float32_matmul_precision": "high"}, "float32 products: high"),
    ],
)
def test_what_was_chosen(chosen, told):
    assert ways(**chosen) == {"a step": told}


def test_checkpointed_parts():
    model = create_model("sa2depth_nano", min_depth=0.1, max_depth=10)
    checkpoint_layers(model, ("decoder",))
    assert ways(model) == {"a step": "layers run again for gradients: decoder"}
