"""Misspelt and missing options are refused, and the nearest names are suggested."""

import sys
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from sa2depth.config import check, check_config
from sa2depth.config.options import EVAL, TRAIN
from sa2depth.errors import ConfigError
from sa2depth.resources import conf_dir

TARGET = "sa2depth.lit.schedules.polynomial_factor"


def program(*names, **nodes):
    """A program's options with only these names, and any values."""
    return dict.fromkeys(names, Any) | nodes


def test_accepts_what_the_target_accepts():
    cfg = OmegaConf.create({"a": {"_target_": TARGET, "step": 1, "total": 2}, "b": 3})
    check_config(cfg, program("a", "b"))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": {"_target_": TARGET, "stepp": 1}}, ["a.stepp", "did you mean step"]),
        ({"a": {"inner": [{"_target_": TARGET, "powwer": 1}]}}, ["a.inner[0].powwer", "power"]),
        ({"aa": 1}, ["unknown option aa", "did you mean a"]),
        ({"a": {"_target_": "sa2depth.lit.no_such_thing"}}, ["a._target_", "no_such_thing"]),
        ({"a": "???"}, ["no default", "a=..."]),
        ({"paths": {"data_dirr": 1}}, ["paths.data_dirr", "data_dir"]),
        ({"callbacks": {"checkpoin": {"dirpath": 1}}}, ["callbacks.checkpoin", "_target_"]),
    ],
)
def test_names_the_key_the_place_and_the_nearest(tree, words):
    with pytest.raises(ConfigError) as caught:
        check_config(OmegaConf.create(tree), program("a", "callbacks", paths={"data_dir": str}))
    for word in words:
        assert word in str(caught.value)


def composed(*overrides, program="train"):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(program, overrides=["paths.output_dir=out", *overrides])


def passes(*overrides, program="train"):
    check_config(composed(*overrides, program=program), TRAIN if program == "train" else EVAL)


EXPERIMENTS = sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml"))
BASES = [name for name in EXPERIMENTS if name.endswith("_base")]


@pytest.mark.parametrize("experiment", sorted({*EXPERIMENTS} - {*BASES}))
def test_every_experiment_composes_and_passes(experiment):
    passes(f"experiment={experiment}", "pretrained_encoder=null")


@pytest.mark.parametrize("base", BASES)
def test_a_base_of_a_family_leaves_the_model_open(base):
    with pytest.raises(ConfigCompositionException, match="You must specify 'model'"):
        composed(f"experiment={base}")


PAPER = {
    **{"trainer.max_epochs": 50, "trainer.accelerator": "gpu", "data.batch_size": 8, "optim.lr": 2e-5},
    **{"optim.weight_decay": 1e-2, "schedule.power": 0.9, "schedule.end_factor": 0.1},
    "loss.variance_focus": 0.85,
}
FAMILIES = {
    "nyu": {"max_depth": 10.0, "data.train._target_": "sa2depth.data.nyu_sync", "protocol.name": "nyu_eigen"},
    "kitti": {"max_depth": 80.0, "data.train.truth": "annotated", "protocol.name": "kitti_eigen_garg"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "channels"), [("t", 64), ("s", 80), ("l", 160)])
def test_the_papers_experiments_have_its_settings_and_ask_for_an_encoder(family, size, channels):
    cfg = composed(f"experiment={family}_{size}")
    expected = {**PAPER, **FAMILIES[family], "name": f"{family}_{size}", "encoder.channels": channels}
    assert {option: OmegaConf.select(cfg, option) for option in expected} == expected
    with pytest.raises(ConfigError, match="pretrained_encoder="):
        check_config(cfg, TRAIN)


GROUPS = (
    *("trainer", "logger", "debug", "schedule", "augment", "protocol", "model", "data", "optim", "loss"),
    "callbacks",
)
MUST_BE_GIVEN = {"protocol=custom": ["protocol.max_depth=20"]}


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_a_group_composes_and_passes(group):
    for path in (conf_dir() / group).glob("*.yaml"):
        if path.stem not in ("default", "assembly"):
            choice = f"{group}={path.stem}"
            passes(choice, "pretrained_encoder=null", *MUST_BE_GIVEN.get(choice, []))


def test_the_evaluation_composes_and_passes():
    passes("checkpoint=x", program="eval")


CUSTOM = ("data=custom", "protocol=custom", "protocol.max_depth=20")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=abc"], "optim.lr=abc: expected a finite number of at least 0"),
        (["optim.lr=nan"], "optim.lr=nan: expected a finite number of at least 0"),
        (["optim.lr=null"], "optim.lr=null: expected a finite number of at least 0"),
        (["optim.lr=[1e-3]"], "optim.lr=[0.001]: expected a finite number of at least 0"),
        (
            ["optim.betas=[a,0.9]"],
            "optim.betas=[a,0.9]: expected a list (each a number of at least 0 and below 1)",
        ),
        (["optim.betas=0.9"], "optim.betas=0.9: expected a list (each a number of at least 0 and below 1)"),
        (["seed=abc"], "seed=abc: expected a whole number from 0 to 4294967295"),
        (["seed=null"], "seed=null: expected a whole number from 0 to 4294967295"),
        (["seed=1.5"], "seed=1.5: expected a whole number from 0 to 4294967295"),
        (["seed=-1"], "seed=-1: expected a whole number from 0 to 4294967295"),
        (["seed=4294967296"], "seed=4294967296: expected a whole number from 0 to 4294967295"),
        (["data.seed=abc"], "data.seed=abc: expected a whole number of at least 0"),
        (["augment.rotation=foo"], "augment.rotation=foo: expected degrees of at least 0 and below 90"),
        (["augment.crop=[416,b]"], "augment.crop=[416,b]: expected [height, width] in pixels or null"),
        (["augment.border=mask"], "augment.border=mask: expected a node with _target_ or null"),
        (["min_depth=abc"], "min_depth=abc: expected a number"),
        (["max_depth=true"], "max_depth=true: expected a number"),
        (["data.train.height=big"], "data.train.height=big: expected a whole number of at least 8"),
        (["data.train.kind=room"], "data.train.kind=room: expected mixed, rooms or streets"),
        (["data.batch_size=2.5"], "data.batch_size=2.5: expected a whole number of at least 1"),
        ([*CUSTOM, "data.train.scale=abc"], "data.train.scale=abc: expected a number or null"),
        ([*CUSTOM, "data.val.scale=abc"], "data.val.scale=abc: expected a number or null"),
        (
            [*CUSTOM, "data.train.list=2024"],
            "data.train.list=2024: expected a path or null; to give it as text, type 'data.train.list=\"2024\"'",
        ),
        (["encoder.post_norm=no"], "encoder.post_norm=no: expected true or false"),
        (["compile=fast"], "compile=fast: expected true or false or auto"),
        (["baseline=2"], "baseline=2: expected true or false"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc: expected a whole number or null"),
        (
            ["trainer.gradient_clip_val=-1"],
            "trainer.gradient_clip_val=-1: expected a number of at least 0 or null",
        ),
        (
            ["trainer.gradient_clip_val=nan"],
            "trainer.gradient_clip_val=nan: expected a number of at least 0 or null",
        ),
        (
            ["trainer.accumulate_grad_batches=0"],
            "trainer.accumulate_grad_batches=0: expected a whole number of at least 1",
        ),
        (
            ["trainer.check_val_every_n_epoch=0"],
            "trainer.check_val_every_n_epoch=0: expected a whole number of at least 1 or null",
        ),
        (
            ["callbacks.checkpoint.save_top_k=best"],
            "callbacks.checkpoint.save_top_k=best: expected a whole number",
        ),
        (["optim.lr=-1"], "optim.lr=-1: expected a finite number of at least 0"),
        (["optim.lr=inf"], "optim.lr=inf: expected a finite number of at least 0"),
        (
            ["optim.betas=[0.9,1]"],
            "optim.betas=[0.9,1]: expected a list (each a number of at least 0 and below 1)",
        ),
        (["schedule.power=0"], "schedule.power=0: expected a number above 0"),
        (["schedule.warmup_steps=-1"], "schedule.warmup_steps=-1: expected a whole number of at least 0"),
        (["loss.variance_focus=2"], "loss.variance_focus=2: expected a number from 0 to 1"),
        (["loss.scale=0"], "loss.scale=0: expected a finite number above 0"),
        (["data.batch_size=0"], "data.batch_size=0: expected a whole number of at least 1"),
        (["data.num_workers=-1"], "data.num_workers=-1: expected a whole number of at least 0 or null"),
        (["data.train.count=0"], "data.train.count=0: expected a whole number of at least 1"),
        (["augment.rotation=90"], "augment.rotation=90: expected degrees of at least 0 and below 90"),
        (["augment.crop=[64]"], "augment.crop=[64]: expected [height, width] in pixels or null"),
        (["augment.crop=[0,64]"], "augment.crop=[0,64]: expected [height, width] in pixels or null"),
        (["augment.cut_flip=2"], "augment.cut_flip=2: expected a probability from 0 to 1"),
        (
            ["encoder.drop_path_rate=1"],
            "encoder.drop_path_rate=1: expected a number of at least 0 and below 1",
        ),
        (["paths.data_dir=[a,b]"], "paths.data_dir=[a,b]: expected text"),
        (["resume=3"], "resume=3: expected a path or null; to give it as text, type 'resume=\"3\"'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_option(overrides, message):
    with pytest.raises(ConfigError) as caught:
        passes(*overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("released.max_depth=abc", "released.max_depth=abc: expected a number or null"),
        ("checkpoint=[a]", "checkpoint=[a]: expected a path or null"),
        ("seed=-3", "seed=-3: expected a whole number from 0 to 4294967295"),
    ],
)
def test_so_it_is_in_an_evaluation(override, message):
    with pytest.raises(ConfigError) as caught:
        passes("checkpoint=x", override, program="eval")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=1"],
        ["optim.lr=1e-4"],
        ["optim.betas=[0,0.9]"],
        ["min_depth=1", "max_depth=inf"],
        ["trainer.gradient_clip_val=0"],
        ["trainer.gradient_clip_val=0.5"],
        ["trainer.check_val_every_n_epoch=null"],
        ["trainer.limit_train_batches=3"],
        ["trainer.limit_train_batches=0.5"],
        ["trainer.max_epochs=10.0"],
        ["trainer.max_time=null"],
        ["trainer.max_time={hours:1}"],
        ["trainer.devices=[0,1]"],
        ["trainer.devices=auto"],
        ["trainer.precision=32"],
        ["trainer.deterministic=warn"],
        ["+trainer.profiler=simple"],
        ["+trainer.fast_dev_run=true"],
        ["+trainer.fast_dev_run=3"],
        ["+trainer.num_nodes=1"],
        ["+trainer.inference_mode=false"],
        ["augment.gamma=null"],
        ["augment.crop=[64,64]"],
        ["augment.border={_target_:sa2depth.data.NyuBorder,mode:mask}"],
        ["data.augment=null"],
        ["data.num_workers=null"],
        ["encoder.layer_scale=1"],
        ["encoder.post_norm=1"],
        ["compile=true", "cuda_graph=auto"],
        ["name=2024", "paths.runs_dir=2024"],
        ["gradient_checkpointing=encoder"],
        ["gradient_checkpointing=[encoder,decoder]"],
        ["gradient_checkpointing=null"],
        ["data=nyu_sync", "data.train.split=36253"],
        [*CUSTOM, "data.train.scale=1000", "data.train.intrinsics=[519,519,320,240]"],
        ["logger=wandb", "logger.wandb.tags=[a,b]", "logger.wandb.offline=true"],
        ["~optim", "+optim={_target_:torch.optim.AdamW,_partial_:true,lr:1e-3,betas:[0.9,0.95],fused:null}"],
        [
            "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/abs_rel,patience:3}"
        ],
    ],
    ids=str,
)
def test_what_is_legal_passes(overrides):
    passes(*overrides)


def targets(node):
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(value)


OWN = sorted(
    {
        target
        for path in conf_dir().rglob("*.yaml")
        for target in targets(OmegaConf.to_container(OmegaConf.load(path)))
        if target.startswith("sa2depth.")
    }
)


@pytest.mark.parametrize("target", OWN)
def test_every_argument_of_our_own_is_held_against_its_annotation(target):
    signature = check._signature(target, "node")
    assert signature.strict
    assert set(signature.hints) == signature.names


class Optimizer:
    """A class whose annotations are narrower than the values that it accepts."""

    def __init__(
        self, lr: int = 1, mode: Literal["a", "b"] = "a", name: str = "x", on: bool = True, **rest: int
    ):
        pass


def test_a_foreign_signature_is_read_kindly(monkeypatch):
    monkeypatch.setitem(sys.modules, "foreign", SimpleNamespace(Optimizer=Optimizer))

    def built(**options):
        node = {"_target_": "foreign.Optimizer", **options}
        check_config(OmegaConf.create({"a": node}), program("a"))

    built(lr=3.0, mode="c", name=None, on=None, other="x")
    built(lr=True)
    for options in ({"lr": "abc"}, {"lr": 2.5}, {"lr": [1]}, {"mode": 3}, {"name": [1]}, {"on": "no"}):
        with pytest.raises(ConfigError, match="expected"):
            built(**options)


def test_a_reference_is_followed_to_the_option_that_has_the_value():
    inner = {"_target_": TARGET, "step": "${..one.step}", "total": 1}
    cfg = OmegaConf.create({"a": {"two": inner, "one": {"step": "${b}"}}, "b": "abc"})
    with pytest.raises(ConfigError) as caught:
        check_config(cfg, program("a", "b"))
    assert str(caught.value) == "b=abc: expected a whole number"


def test_a_reference_into_a_list_is_followed_as_far_as_it_can_be():
    cfg = OmegaConf.create(
        {"a": {"_target_": TARGET, "step": "${b[1]}", "total": "${b[0]}"}, "b": [1, "abc"]}
    )
    with pytest.raises(ConfigError) as caught:
        check_config(cfg, program("a", "b"))
    assert str(caught.value) == "b[1]=abc: expected a whole number"


def test_options_left_of_the_class_that_stood_there_before_are_named_with_the_way_out():
    node = {"_target_": "collections.Counter.fromkeys", "iterable": [1], "groups": 1, "depths": [1]}
    with pytest.raises(ConfigError) as caught:
        check_config(OmegaConf.create({"encoder": node}), program("encoder"))
    said = str(caught.value)
    assert said.startswith(
        "unknown option encoder.groups: collections.Counter.fromkeys has no argument of that name"
    )
    assert "~encoder.groups ~encoder.depths, or, for good, write DIR/encoder/NAME.yaml" in said
    assert "--config-dir DIR encoder=NAME" in said


def test_a_class_that_cannot_be_imported_is_named_with_its_place():
    with pytest.raises(
        ConfigError,
        match=r"^loss\._target_ names 'nowhere\.Loss', but Python cannot find a package 'nowhere'",
    ):
        check_config(OmegaConf.create({"loss": {"_target_": "nowhere.Loss"}}), program("loss"))
    with pytest.raises(
        ConfigError, match=r"^a\[1\]\._target_ names 'collections\.Conter'.*did you mean Counter"
    ):
        check_config(OmegaConf.create({"a": [1, {"_target_": "collections.Conter"}]}), program("a"))
