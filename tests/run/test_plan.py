"""The row of the plan about the computation of a step."""

import pytest
from omegaconf import OmegaConf
from torch import nn

from sa2depth import create_model
from sa2depth.data import DepthDataModule
from sa2depth.errors import ConfigError
from sa2depth.metrics import load_protocol
from sa2depth.run.build import build_trainer
from sa2depth.run.plan import describe_ways, note_of_protocol
from sa2depth.runtime.checkpointing import checkpoint_layers
from sa2depth.scenes import SyntheticScenes

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
    assert ways(model) == {"a step": "gradient checkpointing: decoder"}


def test_the_rules_for_generated_scenes_are_told_of_other_images():
    synthetic, other = load_protocol("synthetic"), load_protocol("nyu_eigen")
    scenes = SyntheticScenes(2)

    class Own:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return scenes[index]

        def describe(self):
            return "own"

    assert note_of_protocol(synthetic, DepthDataModule(None, test=scenes)) == {}
    assert note_of_protocol(other, DepthDataModule(None, test=Own())) == {}
    assert "protocol=custom" in note_of_protocol(synthetic, DepthDataModule(None, test=Own()))["note"]


def test_a_gpu_that_is_not_there_is_told_before_anything_is_built(monkeypatch):
    monkeypatch.setattr("sa2depth.run.build.CUDAAccelerator.is_available", lambda: False)
    cfg = OmegaConf.create({"trainer": {"accelerator": "gpu"}})
    with pytest.raises(
        ConfigError, match=r"trainer\.accelerator=gpu: PyTorch sees no CUDA device.*trainer=cpu"
    ):
        build_trainer(cfg)
