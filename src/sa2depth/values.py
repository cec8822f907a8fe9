"""Is a value of the kind, and in the range, that an annotation asks for? Pydantic answers, in our words.

A configuration holds numbers, texts, lists and nodes; signatures speak of types. What is not understood fits: the
target itself has the last word. Signatures of others are often narrower than what they take, so they are read kindly.
"""

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import GroupedMetadata, MultipleOf, Predicate

from sa2depth.errors import ConfigError, as_typed

_F = TypeVar("_F", bound=Callable[..., Any])
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
            understood, alone and in unions, and limits of ``annotated_types`` in ``Annotated``.
        strict: also that whole numbers are written as such, that NaN is no number, that a class is no number or text,
            that ``Literal`` has named every choice, and that ``None`` is named.
    """
    from pydantic import ValidationError  # slow to import: only who asks pays for it

    if value is None and not strict:
        return True
    try:
        _adapter(wanted, strict).validate_python(_plain(value))
    except ValidationError:
        return False
    return True


def checked(function: _F) -> _F:
    """Refuse arguments of a function, or of a class's ``__init__``, that its annotations say are out of range.

    A composed configuration is held against the annotations before anything is built; this is for calls in Python.

    Raises:
        ConfigError: ``NAME(argument=value): expected ...``.
    """
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.cache
    def limited() -> dict[str, Any]:
        hints = get_type_hints(function, include_extras=True)
        return {argument: hint for argument, hint in hints.items() if "Annotated" in repr(hint)}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for argument in limited().keys() & given.keys():
            if not fits(given[argument], limited()[argument]):
                raise ConfigError(
                    f"{name}({argument}={as_typed(given[argument])}): expected {words(limited()[argument])}"
                )
        return function(*args, **kwargs)

    return cast(_F, call)


@functools.cache
def _adapter(wanted: Any, strict: bool) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(_readable(wanted, strict))


def _plain(value: Any) -> object:
    """A value with lists for sequences of any kind, and Python's numbers for those of NumPy and PyTorch."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return [_plain(item) for item in value]
    return value


def _readable(wanted: Any, strict: bool) -> Any:
    """An annotation as pydantic can hold a value of a configuration against it; a node can be anything."""
    return _without_nodes(wanted, strict) | Annotated[dict, Predicate(_is_node)]


def _without_nodes(wanted: Any, strict: bool) -> Any:
    from pydantic import InstanceOf

    wanted = getattr(wanted, "__value__", wanted)  # type NAME = ...
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return Annotated[(_without_nodes(inner[0], strict), *wanted.__metadata__)]
    if origin in (Union, UnionType):
        return Union[tuple(_readable(one, strict) for one in _alternatives(inner))]  # noqa: UP007
    if origin is Literal:
        choices = [[type(choice), choice] for choice in inner]  # pydantic takes true for 1
        exact = Annotated[Any, Predicate(lambda value: [type(value), value] in choices)]
        return exact if strict else Union[tuple(InstanceOf[kind] for kind, _ in choices)]  # noqa: UP007
    if (kind := origin or wanted) in _LISTS:
        items = [_readable(one, strict) for one in inner if one is not Ellipsis] or [Any]
        fixed = kind is tuple and inner and Ellipsis not in inner
        found: Any = tuple[tuple(items)] if fixed else list[items[0]]  # type: ignore[misc,valid-type]
        return found if strict else found | str | dict
    return dict if kind in _MAPPINGS else _leaf(kind, strict)


def _is_node(value: Mapping[str, Any]) -> bool:
    return "_target_" in value


def _alternatives(union: Sequence[Any]) -> list[Any]:
    """Of a union; next to a path, text is one: ``Path(2024)`` fails."""
    path = any((get_origin(one) or one) in _PATHS for one in union)
    return [one for one in union if not (path and one is str)]


def _leaf(kind: Any, strict: bool) -> Any:
    """What pydantic is asked for where an annotation names no other ones."""
    from pydantic import InstanceOf, StrictBool, StrictFloat, StrictInt, StrictStr

    if kind in (None, NoneType):
        return NoneType
    if kind is bool:
        return StrictBool | Literal[0, 1]
    if kind is int:
        return StrictInt if strict else StrictBool | Annotated[StrictFloat, MultipleOf(1)]
    if kind is float:
        return Annotated[StrictFloat, Predicate(_is_number)] if strict else StrictBool | StrictFloat
    if kind is str:  # YAML reads 36253 as a number
        return StrictStr | StrictFloat if strict else StrictStr | StrictFloat | StrictBool
    if kind in _PATHS:
        return StrictStr
    if kind is Callable and strict:
        return dict
    try:
        isinstance(None, kind)
    except TypeError:  # a type variable, or a protocol that cannot be asked
        return Any
    return InstanceOf[kind] | dict if strict else Any


def _is_number(value: float) -> bool:
    return not math.isnan(value)


def words(wanted: Any) -> str:
    """What an annotation asks for, in words: ``a number of at least 0 or null``."""
    wanted = getattr(wanted, "__value__", wanted)
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        own = [one for one in wanted.__metadata__ if isinstance(one, str)]
        return _limited(own[0] if own else words(inner[0]), wanted.__metadata__)
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


def _limited(kind: str, metadata: Sequence[Any]) -> str:
    """``a finite number of at least 0 and below 90`` for the limits of ``annotated_types``."""
    parts = [part for one in metadata for part in (one if isinstance(one, GroupedMetadata) else [one])]
    limits = {
        name: getattr(part, name)
        for part in parts
        for name in ("ge", "gt", "le", "lt")
        if hasattr(part, name)
    }
    if limits.get("lt") == math.inf:
        del limits["lt"]
        kind = kind.replace("a ", "a finite ", 1)
    if limits.keys() == {"ge", "le"}:
        return f"{kind} from {limits['ge']} to {limits['le']}"
    said = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return " and ".join([kind, *(f"{said[name]} {limit}" for name, limit in limits.items())]).replace(
        " and ", " ", 1
    )
