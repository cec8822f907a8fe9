"""A resumed run keeps the best checkpoints of the earlier run and their scores.

Lightning remembers absolute paths and forgets the scores if the folder has another name: the next validation then
counts as the best, whatever its score, and the earlier best checkpoint is looked for in the old folder.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from sa2depth.atomic import atomic_path

_LOG = logging.getLogger(__name__)


class Continuation(L.Callback):
    """Copies the best checkpoints so far into the folder of the resumed run.

    Args:
        resumed: the checkpoint that the run resumes from; the others lie beside it, or where they were written.
    """

    def __init__(self, resumed: Path) -> None:
        self._beside = resumed.expanduser().absolute().parent

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the state that Lightning is about to restore."""
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.state_key not in states:
                continue
            if trainer.state.fn == TrainerFn.FITTING:
                state = states[callback.state_key]
                found = self._brought(callback, state) if trainer.is_global_zero else None
                states[callback.state_key] = trainer.strategy.broadcast(found)
            else:  # a test of the best checkpoint must not change which one is the best
                del states[callback.state_key]

    def _brought(self, callback: ModelCheckpoint, state: Mapping[str, Any]) -> dict[str, Any]:
        folder = Path(callback.dirpath or self._beside)
        best = (state.get("best_k_models") or {}).items()
        carried = {str(self._bring(path, folder)): score for path, score in best if self._find(path)}
        ordered = sorted(carried, key=lambda path: float(carried[path]), reverse=callback.mode == "max")
        if callback.save_top_k >= 0:
            ordered = ordered[: callback.save_top_k]
        worst = ordered[-1] if ordered and len(ordered) == callback.save_top_k else ""
        lost = state.get("best_model_path") if best and not self._find(state.get("best_model_path")) else None
        if lost:
            _LOG.warning(
                "the best checkpoint so far (%s %.4g) is neither in %s nor at %s: only later ones can become the best",
                callback.monitor, float(state["best_model_score"]), self._beside, lost,
            )  # fmt: skip
        without_score = "" if best else self._find(state.get("best_model_path")) or ""
        return {
            **state,
            "dirpath": callback.dirpath,
            "best_k_models": {path: carried[path] for path in ordered},
            "best_model_path": ordered[0] if ordered else str(without_score),
            "best_model_score": carried[ordered[0]] if ordered else None,
            "kth_best_model_path": worst,
            "kth_value": carried[worst]
            if worst
            else torch.tensor(-torch.inf if callback.mode == "max" else torch.inf),
            "last_model_path": str(self._find(state.get("last_model_path")) or ""),
        }

    def _find(self, path: str | None) -> Path | None:
        """The place where a checkpoint lies now."""
        if not path:
            return None
        places = (self._beside / Path(path).name, Path(path))
        return next((place for place in places if place.is_file()), None)

    def _bring(self, path: str, folder: Path) -> Path:
        source = self._find(path)
        assert source is not None
        target = folder / source.name
        if target.absolute() != source.absolute():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
        return target
