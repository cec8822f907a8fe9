"""Which values fit which annotations, and the words for what is asked for."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pytest
import torch

from sa2depth.values import fits, words

T = TypeVar("T")


class Silent(Protocol):
    """Cannot be asked with isinstance."""

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
]  # fmt: skip
UNFIT = [
    (3.0, int), (True, int), ("3", int), (None, int), ([3], int), ({"a": 3}, int),
    (math.nan, float), (True, float), ("abc", float), (None, float), ("abc", float | None),
    (2, bool), ("no", bool), (None, bool), (True, str), (None, str), (["a"], str),
    ("c", Literal["a", "b"]), (1, Literal["a"]), (True, Literal[1]), ("on", bool | Literal["auto"]),
    (0.9, Sequence[float]), ("ab", Sequence[str]), ([1, "b"], Sequence[int]), ([1, "b"], tuple[int, int]),
    ([1, "b"], tuple[int, ...]), ({"a": 1}, Sequence[str]), ([1], Mapping[str, int]),
    ("a", Callable[[], int] | None), ("a", torch.nn.Module), ([1], torch.nn.Module), (2024, Path | str | None),
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
        (torch.nn.Module | Callable[[], int] | None, "a node with _target_ or null"),
    ],
)
def test_words(wanted, expected):
    assert words(wanted) == expected
