"""Weights & Biases: offline without a login, and a clear word where it is not installed."""

import cv2
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from sa2depth.errors import ConfigError
from sa2depth.lit import loggers


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_logs_offline_without_a_login(tmp_path):
    logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path), name="n", tags=["a"], group="g")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.experiment.finish()
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert (logger.name, logger.save_dir) == ("p", str(tmp_path))


@pytest.mark.parametrize(("offline", "mode"), [(True, "offline"), (False, "online")])
def test_the_option_wins(tmp_path, offline, mode):
    logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path), offline=offline)
    assert logger._wandb_init["mode"] == mode


def test_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sa2depth\[wandb\]'"):
        loggers.wandb_logger(project="p", save_dir=str(tmp_path))


def test_a_second_job_of_a_sweep_gets_a_run_of_its_own(tmp_path):
    picture = tmp_path / "grid.png"
    cv2.imwrite(str(picture), np.zeros((4, 4, 3), np.uint8))
    for job in ("0", "1"):
        logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path / job))
        logger.log_metrics({"train/loss": 1.0}, step=0)
        loggers.close_loggers([CSVLogger(tmp_path), logger], [picture])
        (run,) = (tmp_path / job / "wandb").glob("offline-run-*")
        assert list(run.glob("files/media/images/pictures*.png"))
