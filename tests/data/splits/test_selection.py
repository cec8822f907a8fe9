"""Division of lists by place, and small subsets."""

from pathlib import Path

import pytest

from sa2depth.data.frame import Frame
from sa2depth.data.splits.selection import handful, hold_out
from sa2depth.errors import ConfigError, DataError


def frames_of(names):
    return [Frame(Path("x"), None, None, f"{name}{i}", name[:-1]) for i, name in enumerate(names)]


def test_all_is_undivided_and_nonsense_refused():
    frames = frames_of(["a1", "b1", "c1"])
    assert hold_out(frames, "all", 0) == frames
    with pytest.raises(ConfigError):
        hold_out(frames, "fit", 1)
    with pytest.raises(ConfigError, match="part='half': choose one of all, fit, held_out"):
        hold_out(frames, "half", 2)
    with pytest.raises(ConfigError, match="too few places: choose another every"):
        hold_out(frames[:1], "fit", 2)


def test_handful():
    frames = frames_of(["a1"] * 10)
    assert handful(frames) == frames
    assert handful(frames, limit=5) == frames[::2]
    assert handful(frames, limit=99) == frames
    assert handful(frames, ids=["a14", "a12"]) == [frames[4], frames[2]]
    with pytest.raises(DataError, match=r"'a1x'.*did you mean a1"):
        handful(frames, ids=["a1x"])
    with pytest.raises(ConfigError):
        handful(frames, limit=0)
    with pytest.raises(ConfigError):
        handful(frames, limit=1, ids=["a10"])
