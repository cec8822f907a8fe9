"""Misspelt and unanswered options are refused with the nearest names."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sa2depth.config import check_config
from sa2depth.errors import ConfigError
from sa2depth.resources import conf_dir
from sa2depth.run.build import EVAL_KEYS, TRAIN_KEYS

TARGET = "sa2depth.lit.schedules.polynomial_factor"


def test_accepts_what_the_target_accepts():
    cfg = OmegaConf.create({"a": {"_target_": TARGET, "step": 1, "total": 2}, "b": 3})
    check_config(cfg, {"a": None, "b": None})


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
        check_config(OmegaConf.create(tree), {"a": None, "paths": ("data_dir",), "callbacks": None})
    for word in words:
        assert word in str(caught.value)


def experiments():
    return sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_composes_and_passes(experiment):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = [f"experiment={experiment}", "pretrained_encoder=null", "paths.output_dir=out"]
        check_config(compose("train", overrides=overrides), TRAIN_KEYS)


GROUPS = ["trainer", "logger", "debug", "schedule", "augment", "protocol", "model", "data"]
MUST_BE_GIVEN = {"protocol=custom": ["protocol.max_depth=20"]}


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_a_group_composes_and_passes(group):
    for path in (conf_dir() / group).glob("*.yaml"):
        if path.stem in ("default", "assembly"):
            continue
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            choice = f"{group}={path.stem}"
            given = ["pretrained_encoder=null", "paths.output_dir=out", *MUST_BE_GIVEN.get(choice, [])]
            cfg = compose("train", overrides=[choice, *given])
        check_config(cfg, TRAIN_KEYS)


def test_the_evaluation_composes_and_passes():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check_config(compose("eval", overrides=["checkpoint=x", "paths.output_dir=out"]), EVAL_KEYS)


@pytest.mark.parametrize("experiment", ["nyu_t", "nyu_s", "nyu_l"])
def test_the_papers_experiments_ask_for_a_pretrained_encoder(experiment):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={experiment}", "paths.output_dir=out"])
    with pytest.raises(ConfigError, match="pretrained_encoder="):
        check_config(cfg, TRAIN_KEYS)
