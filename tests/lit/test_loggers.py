"""Weights & Biases: offline without a login, and a clear message if it is not installed."""

import logging
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
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


@contextmanager
def server(status):
    """Address of a W&B server that answers everything with a status; with None it accepts and never answers."""
    over = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            if status is None:
                over.wait(60)
            self.send_response(status or 500)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_PUT = do_POST  # noqa: N815

        def log_message(self, *words):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    serving.daemon_threads = True
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        over.set()
        serving.shutdown()
        serving.server_close()


@contextmanager
def nobody():
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def key(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()  # W&B keeps the settings that it has read first
    yield
    wandb.teardown()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda: server(401), "refuses the key"),
        (lambda: server(500), "does not answer correctly"),
        (lambda: server(None), "does not answer correctly"),
        (nobody, "does not answer correctly"),
    ],
    ids=["wrong key", "broken", "silent", "nobody"],
)
def test_a_server_that_cannot_be_used_costs_one_line(key, tmp_path, monkeypatch, caplog, place, words):
    with place() as address, caplog.at_level(logging.WARNING):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        start = time.monotonic()
        logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path))
        logger.log_hyperparams({"seed": 0})
        logger.log_metrics({"train/loss": 1.0}, step=0)
        loggers.close_loggers([logger], [])
        took = time.monotonic() - start
    (line,) = [record.getMessage() for record in caplog.records if record.name == loggers.__name__]
    assert line.startswith(f"{address} {words} (")
    assert line.endswith(f"this run is logged offline; 'wandb sync {tmp_path}/wandb/*run-*' uploads it later")
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert took < 100  # not forever; it takes some seconds if nothing else runs


@pytest.mark.parametrize(
    ("said", "mode"), [("disabled", "disabled"), ("dryrun", "offline"), ("offline", "offline")]
)
def test_the_environment_says_how(tmp_path, monkeypatch, said, mode):
    monkeypatch.setenv("WANDB_MODE", said)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert loggers.wandb_logger(project="p", save_dir=str(tmp_path))._wandb_init["mode"] == mode


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ({"online"}, ["this run is logged offline; 'wandb sync"]),
        ({"online", "offline"}, ["this run is logged offline; 'wandb sync", "nothing is logged there"]),
        ({"online", "offline", "disabled"}, [
            *("this run is logged offline; 'wandb sync", "nothing is logged there"),
            "nothing more is logged there; 'wandb sync",
        ]),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_opened_costs_lines_and_not_the_training(
    tmp_path, monkeypatch, caplog, fails, said
):
    import wandb

    real, modes = wandb.init, []

    def init(**options):
        modes.append(options["mode"])
        if options["mode"] in fails:
            raise wandb.errors.CommError("Run initialization has timed out\nafter 20.0 sec.")
        return real(**options)

    monkeypatch.setattr(wandb, "init", init)
    logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path), offline=False)
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    loggers.close_loggers([logger], [])
    lines = [record.getMessage() for record in caplog.records if record.name == loggers.__name__]
    assert len(lines) == len(said) + ("disabled" in fails)  # the last warning: it could not be closed either
    for line, words in zip(lines, said, strict=False):
        assert words in line
        assert "(Run initialization has timed out after 20.0 sec.)" in line


def test_a_dashboard_that_fails_in_the_middle_is_left_alone(tmp_path, monkeypatch, caplog):
    logger = loggers.wandb_logger(project="p", save_dir=str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=0)

    def lost(*_args, **_options):
        raise BrokenPipeError("the service is gone")

    with monkeypatch.context() as patch:
        patch.setattr(type(logger.experiment), "log", lost)
        for step in range(1, 5):
            logger.log_metrics({"train/loss": 1.0}, step=step)
    (line,) = [record.getMessage() for record in caplog.records if record.name == loggers.__name__]
    assert line.startswith(
        "Weights & Biases failed (the service is gone): nothing more is logged there; 'wandb sync"
    )
    logger.experiment.finish()


def test_a_dashboard_that_cannot_be_closed_costs_a_line(caplog):
    class Broken:
        def log_image(self, *_args):
            raise OSError("gone")

    loggers.close_loggers([Broken()], [])
    assert "Broken could not be closed: gone" in caplog.text


def test_a_key_that_cannot_be_one_is_not_blamed_on_the_server(tmp_path, monkeypatch, caplog):
    import wandb

    def login(**_options):
        raise wandb.errors.AuthenticationError("WANDB_API_KEY invalid: API key must have 40+ characters")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", login)
    made = loggers.wandb_logger(project="p", save_dir=str(tmp_path))
    assert made._wandb_init["mode"] == "offline"
    (said,) = [record.getMessage() for record in caplog.records if "logged offline" in record.getMessage()]
    assert "refuses the key" in said
