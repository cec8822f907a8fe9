"""Weights & Biases: offline without a login, and a clear word where it is not installed."""

import pytest

from sa2depth.errors import ConfigError
from sa2depth.lit import loggers


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def _offline(logger):
    return logger._wandb_init["mode"] == "offline" if "mode" in logger._wandb_init else logger._offline


def test_is_offline_without_a_login(tmp_path):
    logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path), name="n", tags=["a"], group="g")
    assert _offline(logger)
    assert (logger.name, logger.save_dir) == ("p", str(tmp_path))


@pytest.mark.parametrize("offline", [True, False])
def test_the_option_wins(tmp_path, offline):
    assert _offline(loggers.wandb_logger(project="p", save_dir=str(tmp_path), offline=offline)) is offline


def test_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sa2depth\[wandb\]'"):
        loggers.wandb_logger(project="p", save_dir=str(tmp_path))
