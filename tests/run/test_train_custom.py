"""The commands of docs/data.md for one's own images run unchanged on a tiny made-up data set."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from sa2depth.models import create_model
from sa2depth.resources import conf_dir
from sa2depth.weights import save_model

pytestmark = [pytest.mark.xdist_group("train"), pytest.mark.slow]

PLACES = ("attic", "bath", "cellar", "den")
LISTS = {"my": PLACES, "split": PLACES, "train": PLACES[:2], "val": PLACES[2:3], "test": PLACES[3:]}
SPLITS = {"attic": "train", "bath": "train", "cellar": "val", "den": "test"}
QUICK = ("trainer=cpu", "data.num_workers=0")


def commands():
    """``(program, overrides)`` of every command in the section `Your own`."""
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    section = text.partition("## Your own\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^python -m .*$", section.replace("\\\n", " "), re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return [(program, overrides) for _, _, program, *overrides in words]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with everything that the section names: images of four places, lists and a model."""
    rng = np.random.default_rng(0)
    for place in PLACES:
        for folder in ("rgb", "depth"):
            (tmp_path / folder / place).mkdir(parents=True)
        for number in range(4):
            name = f"{place}/{number:04d}"
            cv2.imwrite(str(tmp_path / f"rgb/{name}.jpg"), rng.integers(0, 256, (32, 64, 3), dtype=np.uint8))
            depth = rng.integers(1000, 9000, (32, 64)).astype(np.uint16)
            cv2.imwrite(str(tmp_path / f"depth/{name}.png"), depth)
    for title, places in LISTS.items():
        rows = [("image", "depth", "split")]
        rows += [
            (f"rgb/{p}/{n:04d}.jpg", f"depth/{p}/{n:04d}.png", SPLITS[p]) for p in places for n in range(4)
        ]
        width = 3 if title == "split" else 2
        (tmp_path / f"{title}.csv").write_text("".join(",".join(row[:width]) + "\n" for row in rows))
    save_model(create_model("sa2depth_nano", min_depth=0.1, max_depth=10.0), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    return tmp_path


def test_every_kind_of_command_is_there():
    programs = [program for program, _ in commands()]
    assert programs == [*["sa2depth.train"] * 4, "sa2depth.eval"]


@pytest.mark.parametrize(("program", "overrides"), commands(), ids=lambda part: str(part)[-60:])
def test_runs_as_it_stands(own, program, overrides):
    _, _, name = program.rpartition(".")
    quick = [*QUICK, f"paths.output_dir={own / 'out'}"]
    if name == "train":
        quick += ["trainer.max_epochs=1", "baseline=false"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(name, overrides=[*overrides, *quick])
    module = import_module(program)
    (module.train if name == "train" else module.evaluate)(cfg)
    scores = json.loads((own / "out/metrics.json").read_text())
    assert scores["images"] == 4  # of one place
