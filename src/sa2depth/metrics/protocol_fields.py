"""What each field of a protocol accepts, and how to say so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from sa2depth.errors import ConfigError, nearest
from sa2depth.metrics.formulas import KNOWN_METRICS

CROPS = ("none", "nyu_eigen", "nyu_pixels", "garg", "kitti_eigen")
INPUTS = ("as_is", "pad", "resize", "max_side", "bottom_centre")
# What some input policies need to know, and no other may be given.
_NEEDS = {"resize": "input_size", "bottom_centre": "input_size", "max_side": "max_side"}
SELECTED_BY = "abs_rel"  # models are selected by it, so every protocol reports it


@dataclass(frozen=True)
class _Kind:
    """What a field accepts, and how to say it."""

    words: str
    number: bool = False
    whole: bool = False
    optional: bool = False
    types: tuple[type, ...] = (str,)
    above: float = -math.inf
    length: int | None = None
    """Of a tuple of numbers: how many; 0 means any."""

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.optional
        if self.length is not None:
            fits = isinstance(value, tuple) and self.length in (0, len(value))
            return fits and all(self._is_number(item) for item in value)  # type: ignore[attr-defined]
        return self._is_number(value) if self.number else isinstance(value, self.types)

    def _is_number(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return math.isfinite(value) and value > self.above


_METRES = _Kind("a positive number of metres", number=True, above=0)
_SIZE = _Kind("[height, width] in pixels or null", whole=True, optional=True, above=0, length=2)
KINDS = {
    "name": _Kind("a text"),
    "version": _Kind("a whole number from 1", number=True, whole=True, above=0),
    # 0 would make log(min_depth) infinite for every prediction that is clamped to it
    "min_depth": _METRES,
    "max_depth": _METRES,
    "crop": _Kind("a text"),
    "clip_both_at": _Kind("a positive number of metres or null", number=True, above=0, optional=True),
    "expected_images": _Kind(
        "a positive whole number or null", number=True, whole=True, above=0, optional=True
    ),
    "images_without_truth": _Kind("a whole number from 0", number=True, whole=True, above=-1),
    "frame": _SIZE,
    "input": _Kind("a text"),
    "input_size": _SIZE,
    "max_side": _Kind(
        "a positive whole number of pixels or null", number=True, whole=True, above=0, optional=True
    ),
    "metrics": _Kind("a list of names", types=(tuple,)),
    "depth_ranges": _Kind("a list of metres", length=0),
    "flip": _Kind("true or false", types=(bool,)),
    "description": _Kind("a text"),
}


def check_fields(values: Mapping[str, object], name: str) -> None:
    """Refuse a field of the wrong type or range, and fields that contradict each other.

    Args:
        values: Every field of a protocol.
        name: Of the protocol, for the messages.

    Raises:
        ConfigError: Naming the field, what it accepts and what it was given.
    """
    for key, kind in KINDS.items():
        if not kind.accepts(values[key]):
            raise _refusal(name, f"{key} must be {kind.words}, not {values[key]!r}")
    for key, known in (("crop", CROPS), ("input", INPUTS)):
        if values[key] not in known:
            raise _refusal(name, f"unknown {key} '{values[key]}'; {nearest(str(values[key]), known)}")
    _check_depths(values, name)
    _check_input(values, name)
    _check_metrics(values["metrics"], name)


def _check_depths(values: Mapping[str, object], name: str) -> None:
    low, high, clip = (values[key] for key in ("min_depth", "max_depth", "clip_both_at"))
    assert isinstance(low, (int, float))
    assert isinstance(high, (int, float))
    if not low < high:
        raise _refusal(name, f"min_depth {low} must be below max_depth {high}")
    if isinstance(clip, (int, float)) and clip <= low:
        raise _refusal(name, f"clip_both_at must be above min_depth {low}")
    edges = values["depth_ranges"]
    assert isinstance(edges, tuple)
    if edges and (len(edges) < 2 or edges[0] < 0 or any(a >= b for a, b in pairwise(edges))):
        raise _refusal(
            name,
            f"depth_ranges must be two or more rising metres from 0, or an empty list, not {list(edges)}",
        )


def _check_input(values: Mapping[str, object], name: str) -> None:
    policy = str(values["input"])
    needed = _NEEDS.get(policy)
    if needed is not None and values[needed] is None:
        raise _refusal(name, f"input={policy} needs {needed}")
    for key in ("input_size", "max_side"):
        if key != needed and values[key] is not None:
            users = " or ".join(word for word, need in _NEEDS.items() if need == key)
            raise _refusal(
                name, f"{key} is for input={users}, but input is {policy}: change one or set {key}=null"
            )


def _check_metrics(metrics: object, name: str) -> None:
    assert isinstance(metrics, tuple)
    for metric in metrics:
        if metric not in KNOWN_METRICS:
            raise _refusal(name, f"unknown metric '{metric}'; {nearest(str(metric), KNOWN_METRICS)}")
    if len(set(metrics)) < len(metrics):
        raise _refusal(name, f"metrics names one twice: {', '.join(metrics)}")
    if SELECTED_BY not in metrics:
        raise _refusal(name, f"metrics must hold {SELECTED_BY}, by which models are selected")


def _refusal(name: str, words: str) -> ConfigError:
    return ConfigError(f"protocol '{name}': {words}")
