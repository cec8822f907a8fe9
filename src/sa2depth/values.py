"""Check values of a configuration against the type and range in an annotation, with pydantic and our own messages.

A configuration holds numbers, texts, lists and nodes, while signatures name types. Annotations that are not understood
accept every value, because the target itself checks it. Signatures of other packages are often narrower than the
values that they accept, so they are read loosely.
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
from pydantic import InstanceOf, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from sa2depth.errors import ConfigError, as_typed

_F = TypeVar("_F", bound=Callable[..., Any])
_PATHS = (Path, PathLike)
_LISTS = (list, tuple, set, frozenset, Sequence, Collection, Iterable)
_MAPPINGS = (dict, Mapping)
_NODE = Annotated[dict, Predicate(lambda value: "_target_" in value)]
_STRICT: dict[Any, Any] = {
    NoneType: NoneType,
    bool: StrictBool | Literal[0, 1],
    int: StrictInt,
    float: Annotated[StrictFloat, Predicate(lambda value: not math.isnan(value))],
    str: StrictStr | StrictFloat,  # YAML reads 36253 as a number
    **dict.fromkeys(_PATHS, StrictStr),
    **dict.fromkeys(_MAPPINGS, dict),
    Callable: dict,
}
_KIND = _STRICT | {
    int: StrictBool | Annotated[StrictFloat, MultipleOf(1)],
    float: StrictBool | StrictFloat,
    str: StrictStr | StrictFloat | StrictBool,
    Callable: Any,
}
_WORDS: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    **dict.fromkeys(_PATHS, "a path"),
    **dict.fromkeys(_MAPPINGS, "a mapping"),
}


def fits(value: object, wanted: Any, *, strict: bool = True) -> bool:
    """Whether a value of a configuration fits an annotation.

    Args:
        value: a number, text, None, a list or a mapping; a mapping with ``_target_`` can be anything.
        wanted: an annotation. Numbers, ``bool``, ``str``, paths, ``None``, ``Literal``, lists and mappings are
            understood, alone and in unions, and limits of ``annotated_types`` in ``Annotated``.
        strict: whole numbers must be written as such, NaN is not a number, a number or text is not a class,
            ``Literal`` must name the choice, and ``None`` must be named.
    """
    if value is None and not strict:
        return True
    try:
        _adapter(wanted, strict).validate_python(_plain(value))
    except ValidationError:
        return False
    return True


def checked(function: _F) -> _F:
    """Refuse arguments of a function or an ``__init__`` that are outside the limits of its annotations.

    A composed configuration is checked against the annotations before anything is built; this is for calls in Python.

    Raises:
        ConfigError: ``NAME(argument=value): expected ...``.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    limited = {name: hint for name, hint in hints.items() if "Annotated" in repr(hint)}
    title = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in limited and not fits(value, limited[name]):
                raise ConfigError(f"{title}({name}={as_typed(value)}): expected {words(limited[name])}")
        return function(*args, **kwargs)

    return cast(_F, call)


def _plain(value: Any) -> object:
    """Turn sequences of any kind into lists, and numbers of NumPy and PyTorch into Python's."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _adapter(wanted: Any, strict: bool) -> TypeAdapter[Any]:
    return TypeAdapter(_readable(wanted, strict) | _NODE)


def _readable(wanted: Any, strict: bool) -> Any:
    """Translate an annotation so that pydantic can check a value of a configuration against it."""
    wanted = getattr(wanted, "__value__", wanted)  # type NAME = ...
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return Annotated[(_readable(inner[0], strict), *wanted.__metadata__)]
    if origin in (Union, UnionType):
        return Union[tuple(_readable(one, strict) for one in _alternatives(inner))]  # noqa: UP007
    if origin is Literal:
        choices = [[type(choice), choice] for choice in inner]  # pydantic takes true for 1
        if strict:
            return Annotated[Any, Predicate(lambda value: [type(value), value] in choices)]
        return Union[tuple(InstanceOf[kind] for kind, _ in choices)]  # type: ignore[misc,valid-type]  # noqa: UP007
    kind = NoneType if wanted is None else origin or wanted
    if kind in _LISTS:
        items = [_readable(one, strict) | _NODE for one in inner if one is not Ellipsis] or [Any]
        fixed = kind is tuple and inner and Ellipsis not in inner
        found: Any = tuple[tuple(items)] if fixed else list[items[0]]  # type: ignore[misc,valid-type]
        return found if strict else found | str | dict
    known = _STRICT if strict else _KIND
    if kind in known or not (strict and _can_be_asked(kind)):
        return known.get(kind, Any)
    return InstanceOf[kind] | dict  # type: ignore[misc,valid-type]


def _can_be_asked(kind: Any) -> bool:
    try:
        isinstance(None, kind)
    except TypeError:  # a type variable, or a protocol
        return False
    return True


def _alternatives(union: Sequence[Any]) -> list[Any]:
    """The members of a union, without text next to a path, because ``Path(2024)`` fails."""
    path = any((get_origin(one) or one) in _PATHS for one in union)
    return [one for one in union if not (path and one is str)]


def words(wanted: Any) -> str:
    """Describe an annotation in words: ``a number of at least 0 or null``."""
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
