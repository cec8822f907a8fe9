"""Before scoring, all processes take the batch-norm statistics of the first."""

import pytest
import torch

from brightness import Brightness, module_of
from sa2depth.lit.callbacks import SharedBuffers, buffers


@pytest.mark.parametrize("stage", ["validation", "test"])
@pytest.mark.parametrize("together", [True, False])
def test_the_first_ones_are_sent(stage, together, monkeypatch):
    sent = []
    monkeypatch.setattr(buffers, "is_initialized", lambda: together)
    monkeypatch.setattr(buffers, "broadcast", lambda buffer, src: sent.append((src, buffer)))
    module = module_of(Brightness())
    module.model.norm = torch.nn.BatchNorm2d(3)
    getattr(SharedBuffers(), f"on_{stage}_epoch_start")(None, module)
    assert [src for src, _ in sent] == [0] * (3 if together else 0)
    assert [id(b) for _, b in sent] == [id(b) for b in module.model.buffers() if together]
