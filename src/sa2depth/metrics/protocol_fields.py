"""The values that each field of a protocol accepts, and the words for them in error messages."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from annotated_types import Ge, Gt
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from sa2depth.errors import ConfigError, nearest
from sa2depth.metrics.formulas import KNOWN_METRICS

CROPS = ("none", "nyu_eigen", "nyu_pixels", "garg", "kitti_eigen")
INPUTS = ("as_is", "pad", "resize", "max_side", "bottom_centre")
# The field that an input policy needs; the other fields of this list must then be null.
_NEEDS = {"resize": "input_size", "bottom_centre": "input_size", "max_side": "max_side"}
SELECTED_BY = "abs_rel"  # models are selected by it, so every protocol reports it


_Count = Annotated[int, Gt(0)]
_Finite = Annotated[float, AllowInfNan(False)]
_Metres = Annotated[_Finite, Gt(0)]
_METRES = _Metres, "a positive number of metres"
_SIZE = tuple[_Count, _Count] | None, "[height, width] in pixels or null"
_WORDS: dict[str, tuple[Any, str]] = {
    "name": (str, "a text"),
    "version": (_Count, "a whole number from 1"),
    # 0 would make log(min_depth) infinite for every prediction that is clamped to it
    "min_depth": _METRES,
    "max_depth": _METRES,
    "crop": (str, "a text"),
    "clip_both_at": (_Metres | None, "a positive number of metres or null"),
    "expected_images": (_Count | None, "a positive whole number or null"),
    "images_without_truth": (Annotated[int, Ge(0)], "a whole number from 0"),
    "frame": _SIZE,
    "input": (str, "a text"),
    "input_size": _SIZE,
    "max_side": (_Count | None, "a positive whole number of pixels or null"),
    "metrics": (tuple, "a list of names"),
    "depth_ranges": (tuple[_Finite, ...], "a list of metres"),
    "flip": (bool, "true or false"),
    "description": (str, "a text"),
}
KINDS = {key: TypeAdapter(kind) for key, (kind, _) in _WORDS.items()}


def check_fields(values: Mapping[str, Any], name: str) -> None:
    """Refuse a field of the wrong type or range, and fields that contradict each other.

    Args:
        values: Every field of a protocol.
        name: Name of the protocol, for the messages.

    Raises:
        ConfigError: A value is wrong; the message names the field, what it accepts and what it was given.
    """
    for key, kind in KINDS.items():
        try:
            kind.validate_python(values[key], strict=True)
        except ValidationError as error:
            raise _refusal(name, f"{key} must be {_WORDS[key][1]}, not {values[key]!r}") from error
    for key, known in (("crop", CROPS), ("input", INPUTS)):
        if values[key] not in known:
            raise _refusal(name, f"unknown {key} '{values[key]}'; {nearest(str(values[key]), known)}")
    _check_depths(values, name)
    _check_input(values, name)
    _check_metrics(values["metrics"], name)


def _check_depths(values: Mapping[str, Any], name: str) -> None:
    low, high, clip = (values[key] for key in ("min_depth", "max_depth", "clip_both_at"))
    if not low < high:
        raise _refusal(name, f"min_depth {low} must be below max_depth {high}")
    if clip is not None and clip <= low:
        raise _refusal(name, f"clip_both_at must be above min_depth {low}")
    edges = values["depth_ranges"]
    if edges and (len(edges) < 2 or edges[0] < 0 or any(a >= b for a, b in pairwise(edges))):
        raise _refusal(
            name,
            f"depth_ranges must be two or more rising depths in metres from 0, or an empty list, not {list(edges)}",
        )


def _check_input(values: Mapping[str, Any], name: str) -> None:
    policy = values["input"]
    needed = _NEEDS.get(policy)
    if needed is not None and values[needed] is None:
        raise _refusal(name, f"input={policy} needs {needed}")
    for key in ("input_size", "max_side"):
        if key != needed and values[key] is not None:
            users = " or ".join(word for word, need in _NEEDS.items() if need == key)
            raise _refusal(
                name, f"{key} is for input={users}, but input is {policy}: change one or set {key}=null"
            )


def _check_metrics(metrics: tuple[Any, ...], name: str) -> None:
    for metric in metrics:
        if metric not in KNOWN_METRICS:
            raise _refusal(name, f"unknown metric '{metric}'; {nearest(str(metric), KNOWN_METRICS)}")
    if len(set(metrics)) < len(metrics):
        raise _refusal(name, f"metrics names an error twice: {', '.join(metrics)}")
    if SELECTED_BY not in metrics:
        raise _refusal(name, f"metrics must contain {SELECTED_BY}, because models are selected by it")


def _refusal(name: str, words: str) -> ConfigError:
    return ConfigError(f"protocol '{name}': {words}")
