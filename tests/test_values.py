"""Values that fit annotations, and the words that describe an annotation."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval, Le
from omegaconf import OmegaConf

from sa2depth.errors import ConfigError
from sa2depth.values import checked, fits, words

T = TypeVar("T")
Share = Annotated[float, Interval(ge=0, le=1)]
Size = Annotated[int, Ge(1)]
Above = Annotated[float, Gt(0)]
Finite = Annotated[float, "degrees", Interval(ge=0, lt=math.inf)]


class Silent(Protocol):
    """A class that isinstance does not work with."""

    size: int


FIT = [
    (3, int), (0, int), (3, float), (0.5, float), (math.inf, float), (True, bool), (1, bool), ("a", str), (36253, str),
    (None, float | None), (None, None), (None, Any), ("a", Any), ([1], Any), ("a", object), ("a", T), ("a", Silent),
    ("a", Literal["a", "b"]), (None, Literal["a"] | None), (True, bool | Literal["auto"]),
    ([1, 0.5], Sequence[float]), ([1, 2], list[int]), ([1, 2], tuple[int, int]), ([1, 2, 3], tuple[int, ...]),
    ([], Sequence[int]), (["a"], list), ([[1], [2]], Sequence[Sequence[int]]),
    ({"a": 1}, Mapping[str, int]), ({"a": 1}, torch.nn.Module), ({"_target_": "x"}, int),
    ({"_target_": "x"}, Callable[[], int]), ([{"_target_": "x"}], list[torch.nn.Module]),
    ("a/b", Path), ("a/b", Path | str), ("a", Path | None),
    (0, Share), (1, Share), (None, Share | None), ([1, 2], tuple[Size, Size]), (0.5, Finite), (math.inf, Above),
    ({"_target_": "x"}, Share),
]  # fmt: skip
UNFIT = [
    (3.0, int), (True, int), ("3", int), (None, int), ([3], int), ({"a": 3}, int),
    (math.nan, float), (True, float), ("abc", float), (None, float), ("abc", float | None),
    (2, bool), ("no", bool), (None, bool), (True, str), (None, str), (["a"], str),
    ("c", Literal["a", "b"]), (1, Literal["a"]), (True, Literal[1]), ("on", bool | Literal["auto"]),
    (0.9, Sequence[float]), ("ab", Sequence[str]), ([1, "b"], Sequence[int]), ([1, "b"], tuple[int, int]),
    ([1, "b"], tuple[int, ...]), ({"a": 1}, Sequence[str]), ([1], Mapping[str, int]),
    ("a", Callable[[], int] | None), ("a", torch.nn.Module), ([1], torch.nn.Module), (2024, Path | str | None),
    (-0.1, Share), (1.1, Share), (math.nan, Share), (True, Share), ("a", Share), (0, Size), (1.5, Size),
    ([1], tuple[Size, Size]), ([1, 2, 3], tuple[Size, Size]), ([1, 0], tuple[Size, Size]),
    (math.inf, Finite), (0, Above), (None, Share),
]  # fmt: skip
KIND = [
    (3.0, int), (True, int), (None, int), (math.nan, float), (True, float), (None, str), ("c", Literal["a"]),
    ("ab", Sequence[str]), ("a", torch.nn.Module), ("a", float | torch.Tensor), ("a", Callable[[], int]),
]  # fmt: skip
UNKIND = [
    ("abc", float),
    ("abc", int),
    (2.5, int),
    ("no", bool),
    ([1], float | None),
    (1, Literal["a"]),
    (1, list[int]),
]


@pytest.mark.parametrize(("value", "wanted"), FIT)
def test_fits(value, wanted):
    assert fits(value, wanted)
    assert fits(value, wanted, strict=False)


@pytest.mark.parametrize(("value", "wanted"), UNFIT)
def test_does_not_fit(value, wanted):
    assert not fits(value, wanted)


@pytest.mark.parametrize(("value", "wanted"), KIND)
def test_others_may_take_more_than_they_say(value, wanted):
    assert not fits(value, wanted)
    assert fits(value, wanted, strict=False)


@pytest.mark.parametrize(("value", "wanted"), UNKIND)
def test_but_not_anything(value, wanted):
    assert not fits(value, wanted, strict=False)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (None | float, "a number or null"),
        (Path | str | None, "a path or null"),
        (Literal["a", "b", None], "a, b or null"),
        (Literal["a"], "a"),
        (Sequence[int] | None, "a list (each a whole number) or null"),
        (tuple[float, int], "a list (each a number or a whole number)"),
        (tuple[float, ...], "a list (each a number)"),
        (list, "a list"),
        (dict[str, int], "a mapping"),
        (Share, "a number from 0 to 1"),
        (Size | None, "a whole number of at least 1 or null"),
        (Above, "a number above 0"),
        (Annotated[float, Interval(ge=0, lt=90)], "a number of at least 0 and below 90"),
        (Annotated[float, Interval(gt=0, lt=math.inf)], "a finite number above 0"),
        (Annotated[int, Le(3)], "a whole number of at most 3"),
        (Annotated[float, "degrees", Ge(0)], "degrees of at least 0"),
        (tuple[Size, Size], "a list (each a whole number of at least 1)"),
        (torch.nn.Module | Callable[[], int] | None, "a node with _target_ or null"),
    ],
)
def test_words(wanted, expected):
    assert words(wanted) == expected


class Window:
    """A class with limits in its annotations."""

    @checked
    def __init__(self, size: tuple[Size, Size], share: Share = 0.5, name: int = 0) -> None:
        self.size, self.share, self.name = size, share, name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (0, 2)}, "Window(size=[0,2]): expected a list (each a whole number of at least 1)"),
        ({"size": (1, 2), "share": 2}, "Window(share=2): expected a number from 0 to 1"),
        ({"size": (1, 2), "share": None}, "Window(share=null): expected a number from 0 to 1"),
    ],
)
def test_limits_hold_in_python_too(given, message):
    with pytest.raises(ConfigError) as caught:
        Window(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize("share", [0, np.float32(0.5), torch.tensor(1.0)])
@pytest.mark.parametrize("size", [(1, 2), np.array([1, 2]), OmegaConf.create([1, 2])])
def test_numbers_of_any_library_arrive_as_they_are(size, share):
    window = Window(size, share, name="no limit, no check")
    assert window.size is size
    assert window.share is share


def test_arguments_that_do_not_fit_the_signature_are_pythons_matter():
    with pytest.raises(TypeError, match="colour"):
        Window((1, 2), colour="red")
