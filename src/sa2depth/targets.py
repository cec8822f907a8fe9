"""Classes and functions that a configuration names by ``_target_``: found by name, and trusted or not.

What the command line composed is trusted. What came inside a file is not, until its reader names the package.
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
    """The class or function of a name; its module is imported.

    Args:
        target: ``package.module.Class``.

    Raises:
        ConfigError: There is no such module or name, with the nearest ones, or the module fails when it is imported,
            with the line where it does. The message begins with the name and goes on behind "... names".
    """
    parts = target.split(".")
    if not _NAME.fullmatch(target) or len(parts) < 2:
        raise ConfigError(f"'{target}', which is no name of a class or function: write package.module.Class")
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
    """Where a class or function was really made, as a dotted name."""
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', type(found).__qualname__)}"


def packages(names: Iterable[str]) -> list[str]:
    """The packages, each once, that dotted names lie in."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def parse_trusted(value: object, option: str = "trusted") -> tuple[str, ...]:
    """What an option says about whom to trust.

    Args:
        value: ``None``, ``"mypkg"``, ``"mypkg,other.module"``, or a list of such names.
        option: Its name, for messages.

    Returns:
        Names of packages, modules or classes.

    Raises:
        ConfigError: Something else.
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
                f"{option}: {name!r} is no name of a package, module or class; write {option}=mypkg or "
                f"{option}=[mypkg.encoders,other]"
            )
    return tuple(map(str, names))


def _module(target: str) -> tuple[Any, int]:
    """The longest part of a name that is a module, imported, and how many words of the name it takes."""
    parts = target.split(".")
    module, words = None, 0
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        if hasattr(module, parts[count - 1]) and not isinstance(
            getattr(module, parts[count - 1]), ModuleType
        ):
            break  # a class, whatever module has the same name
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
            f"'{target}', but there is no package '{parts[0]}' that Python can import here: install it, or put the "
            "folder that it lies in on PYTHONPATH (`python -m sa2depth...` also looks into the current folder, the "
            "command `sa2depth` does not)"
        )
    return module, words


def _line(error: BaseException) -> str:
    """Where an import failed, if Python code of somebody else's says it."""
    if isinstance(error, SyntaxError):
        return f", says {error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and Path(frame.filename) != Path(__file__)
    ]
    outside = [frame for frame in frames if "importlib" not in frame.filename]
    return f", says {outside[-1].filename}:{outside[-1].lineno}" if outside else ""
