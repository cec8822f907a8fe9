"""Dividing a list of frames: places held out for model selection, and small subsets for trials.

The released code selects its best model on the test images; here some of the training places are held
out for that.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, get_args

from sa2depth.data.frame import Frame
from sa2depth.errors import ConfigError, DataError, nearest

Part = Literal["all", "fit", "held_out"]
_T = TypeVar("_T")


def hold_out(frames: Sequence[Frame], part: Part, every: int) -> list[Frame]:
    """One part of a training list, divided by place so that no room is on both sides.

    Args:
        frames: the whole list.
        part: ``held_out`` = the frames of every ``every``-th place in alphabetical order, ``fit`` = the
            others, ``all`` = undivided.
        every: at least 2.

    Raises:
        ConfigError: the part is unknown, ``every`` is below 2, or the part would be empty.
    """
    require_choice(f"part={part!r}", part, get_args(Part))
    if part == "all":
        return list(frames)
    if every < 2:
        raise ConfigError(
            f"every={every}: expected at least 2 (every 2nd place held out); use part=all to hold out nothing"
        )
    kept_apart = set(sorted({frame.place for frame in frames})[::every])
    chosen = [frame for frame in frames if (frame.place in kept_apart) == (part == "held_out")]
    if not chosen:
        raise ConfigError(
            f"part={part}, every={every} leaves none of {len(frames)} frames, because the list has too few places: "
            "choose another every, or part=all"
        )
    return chosen


def handful(
    frames: Sequence[Frame], limit: int | None = None, ids: Sequence[str] | None = None
) -> list[Frame]:
    """A few of the frames, or all of them if neither ``limit`` nor ``ids`` is given.

    Args:
        frames: the frames to choose from.
        limit: at most this many, evenly spread over the list.
        ids: exactly these, in the order given.

    Raises:
        ConfigError: both are given, or ``limit`` is below 1.
        DataError: an id is not in the list.
    """
    if ids is not None:
        if limit is not None:
            raise ConfigError("give either limit or ids, not both: set limit=null to choose by ids")
        by_id = {frame.id: frame for frame in frames}
        unknown = [name for name in ids if name not in by_id]
        if unknown:
            raise DataError(
                f"{len(unknown)} ids are not in this list, first '{unknown[0]}'; {nearest(unknown[0], by_id)}"
            )
        return [by_id[name] for name in ids]
    if limit is None:
        return list(frames)
    if limit < 1:
        raise ConfigError(f"limit={limit}: expected at least 1, or null for all")
    return spread(frames, limit)


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most ``count`` of the items, evenly spread."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def require_choice(problem: str, value: object, choices: Iterable[str]) -> None:
    """Fail unless ``value`` is one of ``choices``.

    Raises:
        ConfigError: the message is ``problem`` and the choices.
    """
    if value not in (known := tuple(choices)):
        raise ConfigError(f"{problem}: choose one of {', '.join(known)}")
