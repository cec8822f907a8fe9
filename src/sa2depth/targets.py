"""Find the classes and functions that a configuration names by ``_target_``, and decide whether to trust them.

Names that the command line composed are trusted. Names inside a file are not, until its reader names the package.
"""

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sa2depth.errors import ConfigError, nearest

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def find(target: str) -> Any:
    """Find a class or function by its name; its module is imported.

    Args:
        target: ``package.module.Class``.

    Raises:
        ConfigError: There is no such module or name (the nearest ones are named), or the module fails when it is
            imported (the line is named). The message begins with the name and continues a text "... names".
    """
    parts = target.split(".")
    if not _NAME.fullmatch(target) or len(parts) < 2:
        raise ConfigError(f"'{target}', which cannot be a class or function: write package.module.Class")
    found, count = _module(target)
    for place, name in enumerate(parts[count:], start=count):
        if not hasattr(found, name):
            known = [other for other in dir(found) if not other.startswith("_")]
            raise ConfigError(
                f"'{target}', but {'.'.join(parts[:place])} has no '{name}'; {nearest(name, known)}"
            )
        found = getattr(found, name)
    return found


def named(node: Any) -> Iterator[str]:
    """Every ``_target_`` inside plain dictionaries and lists."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from named(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from named(value)


def covered(name: str, trusted: Iterable[str]) -> bool:
    """Whether a dotted name is one of the trusted packages, modules and classes, or lies in one of them."""
    return any(f"{name}.".startswith(f"{prefix.rstrip('.')}.") for prefix in trusted)


def home(found: object) -> str:
    """The place where a class or function was defined, as a dotted name."""
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', type(found).__qualname__)}"


def packages(names: Iterable[str]) -> list[str]:
    """The packages of dotted names, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def parse_trusted(value: object, option: str = "trusted") -> tuple[str, ...]:
    """Read an option that names trusted packages.

    Args:
        value: ``None``, ``"mypkg"``, ``"mypkg,other.module"``, or a list of such names.
        option: Name of the option, for messages.

    Returns:
        Names of packages, modules or classes.

    Raises:
        ConfigError: The value is something else.
    """
    if value is None:
        return ()
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Iterable) or isinstance(items, Mapping):
        items = [value]
    names = [item.strip().removesuffix(".") if isinstance(item, str) else item for item in items]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{option}: {name!r} cannot be the name of a package, module or class; write {option}=mypkg or "
                f"{option}=[mypkg.encoders,other]"
            )
    return tuple(map(str, names))


def _module(target: str) -> tuple[Any, int]:
    """Import the longest part of a name that is a module; also return how many words of the name it has."""
    parts = target.split(".")
    module, words = None, 0
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        if hasattr(module, parts[count - 1]) and not isinstance(
            getattr(module, parts[count - 1]), ModuleType
        ):
            break  # a class goes before a module of the same name
        try:
            module, words = import_module(name), count
        except ModuleNotFoundError as error:
            if error.name is None or not covered(name, [error.name]):
                raise ConfigError(
                    f"'{target}', but the module {name} imports '{error.name}', which is not installed{_line(error)}"
                ) from error
            break
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"'{target}', but the module {name} fails when it is imported: {said}{_line(error)}"
            ) from error
    if module is None:
        raise ConfigError(
            f"'{target}', but Python cannot find a package '{parts[0]}' here: install it, or add its parent folder to "
            "PYTHONPATH (`python -m sa2depth...` also searches the current folder, the command `sa2depth` does not)"
        )
    return module, words


def _line(error: BaseException) -> str:
    """The place where an import failed, if that is in somebody else's Python code."""
    if isinstance(error, SyntaxError):
        return f" (in {error.filename}:{error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and Path(frame.filename) != Path(__file__)
    ]
    outside = [frame for frame in frames if "importlib" not in frame.filename]
    return f" (in {outside[-1].filename}:{outside[-1].lineno})" if outside else ""
