"""Is a value of the kind that a signature asks for?

A configuration holds numbers, texts, lists and nodes; signatures speak of types. What is not understood fits: the
target itself has the last word. Signatures of others are often narrower than what they take, so they are read kindly.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sa2depth.errors import as_typed

_PATHS = (Path, PathLike)
_LISTS = (list, tuple, set, frozenset, Sequence, Collection, Iterable)
_MAPPINGS = (dict, Mapping)
_WORDS: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    PathLike: "a path",
}


def fits(value: object, wanted: Any, *, strict: bool = True) -> bool:
    """Whether a value of a configuration can be what an annotation says.

    Args:
        value: a number, text, None, a list or a mapping; a mapping with ``_target_`` can be anything.
        wanted: an annotation. Numbers, ``bool``, ``str``, paths, ``None``, ``Literal``, lists and mappings are
            understood, alone and in unions.
        strict: also that whole numbers are written as such, that NaN is no number, that a class is no number or text,
            that ``Literal`` has named every choice, and that ``None`` is named.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if value is None and not strict:
        return True
    wanted = getattr(wanted, "__value__", wanted)  # type NAME = ...
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(fits(value, one, strict=strict) for one in _alternatives(inner))
    if origin is Literal:
        kinds = {type(choice) for choice in inner}
        return any(type(value) is type(c) and value == c for c in inner) if strict else type(value) in kinds
    kind = origin or wanted
    if kind in _LISTS:
        return _fits_list(value, kind, inner, strict)
    if kind in _MAPPINGS:
        return isinstance(value, Mapping)
    return _fits_plain(value, NoneType if kind is None else kind, strict)


def _alternatives(union: Sequence[Any]) -> list[Any]:
    """Of a union; next to a path, text is one: ``Path(2024)`` fails."""
    path = any((get_origin(one) or one) in _PATHS for one in union)
    return [one for one in union if not (path and one is str)]


def _fits_list(value: object, kind: Any, inner: Sequence[Any], strict: bool) -> bool:
    if isinstance(value, str | Mapping):
        return not strict
    if not isinstance(value, Iterable):
        return False
    if not inner:
        return True
    each = inner if kind is tuple and Ellipsis not in inner else repeat(inner[0])
    return all(fits(item, one, strict=strict) for item, one in zip(value, each, strict=False))


def _fits_plain(value: object, kind: Any, strict: bool) -> bool:
    truth, number = isinstance(value, bool), isinstance(value, int | float)
    if kind is NoneType:
        return value is None
    if kind is bool:
        return truth or (number and value in (0, 1))
    if kind is int:
        return isinstance(value, int) and not truth if strict else number and float(value).is_integer()  # type: ignore[arg-type]
    if kind is float:
        return number and not (strict and (truth or math.isnan(value)))  # type: ignore[arg-type]
    if kind is str:  # YAML reads 36253 as a number
        return isinstance(value, str) or (number and not (strict and truth))
    if kind in _PATHS:
        return isinstance(value, str)
    if not strict or isinstance(value, Mapping):
        return True
    if kind is Callable:
        return False
    return _can_be(value, kind)


def _can_be(value: object, kind: Any) -> bool:
    if not isinstance(kind, type):
        return True
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked
        return True


def words(wanted: Any) -> str:
    """What an annotation asks for, in words: ``a number or null``."""
    wanted = getattr(wanted, "__value__", wanted)
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        # one kind of node is enough, null goes last
        said = dict.fromkeys(
            words(one) for one in sorted(_alternatives(inner), key=lambda one: one is NoneType)
        )
        return " or ".join(said)
    if origin is Literal:
        *first, last = map(as_typed, inner)
        return f"{', '.join(first)} or {last}" if first else last
    kind = NoneType if wanted is None else origin or wanted
    if kind in _LISTS:
        if not inner:
            return "a list"
        items = inner[:1] if Ellipsis in inner or kind is not tuple else inner
        return f"a list (each {' or '.join(dict.fromkeys(words(item) for item in items))})"
    if kind in _MAPPINGS:
        return "a mapping"
    return _WORDS.get(kind, "a node with _target_")
