"""Fixtures that several rooms share."""

import gzip
import json
import logging
import os
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.singleton import Singleton
from torch import Tensor, nn

import rounding
from sa2depth.config import launch

DATA = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "data"

# Test workers share the cores, so several threads per worker would only wait for each other.
# The suite is also run with several threads, because sums in another order round differently.
torch.set_num_threads(int(os.environ.get("SA2DEPTH_TEST_THREADS", "1")))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # must be set before Triton is imported, which reads it once

if choice := os.environ.get(rounding.VARIABLE):
    rounding.Rounding(*map(int, choice.split(","))).__enter__()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that this machine cannot run, so that they do not pass silently."""
    cannot = {
        "gpu": not torch.cuda.is_available(),
        "real_data": not list(SHARED.glob("nyu_labelled_*.tar")),
    }
    left_out = [
        item for item in items if any(cannot[m.name] for m in item.iter_markers() if m.name in cannot)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _rng(tag: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(tag.encode()) & 0x7FFFFFFF)


class Golden:
    """Numbers of the released code, and the rule by which its weights and inputs were made.

    Weights and inputs are not stored: each comes from a frozen NumPy stream seeded by its name.
    """

    def load(self, name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz") as file:
            return {key: file[key] for key in file}

    def input(self, tag: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.from_numpy(_rng(tag).standard_normal(shape)).to(dtype)

    def tensor(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """The value of the released tensor ``key``, float64."""
        z = _rng(key).standard_normal(shape)
        leaf = key.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            return torch.tensor(0)
        if leaf == "running_var":
            value = 1 + 0.2 * np.abs(z)
        elif leaf == "running_mean":
            value = 0.1 * z
        elif leaf == "A_logs":
            value = np.log(np.arange(1, shape[1] + 1))[None, :] + 0.1 * z
        elif leaf == "Ds":
            value = 1 + 0.1 * z
        elif leaf == "dt_projs_bias":
            value = -3 + 0.5 * z
        elif leaf.startswith("gamma"):
            value = 0.5 + 0.1 * z
        elif leaf.startswith("attn"):
            value = 0.25 + 0.05 * z
        elif leaf == "shortcut":
            value = np.eye(3).reshape(1, 1, 3, 3)
        elif len(shape) == 1:
            value = 1 + 0.1 * z if leaf == "weight" else 0.1 * z
        else:
            value = z / np.sqrt(np.prod(shape[1:]))
        return torch.from_numpy(np.asarray(value))

    def keys(self, size: str) -> dict[str, list[int]]:
        """Name and shape of every tensor of the released model ``t``, ``s`` or ``l``."""
        return json.loads(gzip.decompress((DATA / f"keys_{size}.json.gz").read_bytes()))

    def official_state(self, size: str) -> dict[str, Tensor]:
        return {key: self.tensor(key, tuple(shape)) for key, shape in self.keys(size).items()}

    def fill(self, module: nn.Module, ours: str, official: str, prefix: str) -> dict[str, str]:
        """Give a part of our model the golden weights.

        Args:
            module: our module, at ``ours`` in a whole model.
            ours: e.g. ``decoder.blocks.0.``.
            official: the same place in the released model, e.g. ``block3.``.
            prefix: prefix of the golden keys, e.g. ``block.``.

        Returns:
            The released name, relative to the module, of each of its tensors.
        """
        from sa2depth.weights.official import official_name

        names = {}
        for name in module.state_dict():
            full = official_name(ours + name)
            assert full is not None, f"{ours + name} has no released name"
            assert full.startswith(official)
            names[name] = full.removeprefix(official)
        state = {
            name: self.tensor(prefix + names[name], tuple(t.shape)) for name, t in module.state_dict().items()
        }
        module.load_state_dict(state)
        return names

    def check(self, actual: Tensor, expected: np.ndarray, tolerance: float, what: str = "") -> None:
        """Check that the largest difference is at most ``tolerance`` times the largest expected value."""
        reference = torch.from_numpy(np.asarray(expected)).double()
        assert tuple(actual.shape) == tuple(reference.shape), what
        error = (actual.double() - reference).abs().max() / reference.abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{what}: relative error {error:.2e} above {tolerance:.0e}"

    def check_module(
        self,
        name: str,
        module: nn.Module,
        inputs: list[Tensor],
        names: dict[str, str],
        tolerance: SimpleNamespace,
        forward=None,
        tag: str = "",
    ) -> None:
        """Compare output, input gradients and the norm of every parameter's gradient with file ``name``.

        ``tag`` names the cotangent, if it is not named after the file.
        """
        expected = self.load(name)
        for tensor in inputs:
            tensor.requires_grad_()
        out = (forward or module)(*inputs)
        self.check(out, expected["out"], tolerance.out, "out")
        (out * self.input(f"{tag or name}/cotangent", tuple(out.shape), out.dtype)).sum().backward()
        for index, tensor in enumerate(inputs):
            self.check(tensor.grad, expected[f"grad_in{index}"], tolerance.grad, f"grad_in{index}")
        norms = {key for key in expected if key.startswith("gradnorm/")}
        seen = set()
        for key, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            norm = f"gradnorm/{names[key]}"
            seen.add(norm)
            reference = expected[norm].item()
            assert parameter.grad.double().norm().item() == pytest.approx(
                reference, rel=tolerance.norm, abs=1e-9
            ), norm
        assert seen == norms


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture
def launching(tmp_path, monkeypatch, capsys):
    """``(job, overrides) -> (exit status, stderr)`` of ``launch`` with ``conf/train.yaml``; stdout in ``.printed``."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    hydras, log = Singleton.get_state(), logging.getLogger()
    handlers, level = list(log.handlers), log.level

    def run(job, *overrides):
        status = launch("train", job, overrides)
        run.printed, said = capsys.readouterr()
        return status, said

    yield run
    Singleton.set_state(hydras)  # clean up the state that Hydra leaves behind, for later tests
    log.handlers[:] = handlers
    log.setLevel(level)
