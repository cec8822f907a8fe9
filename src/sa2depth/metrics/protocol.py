"""What a depth score means: range, crop and clamping of an evaluation, under a name and a version.

The shipped protocols are ``conf/protocol/*.yaml``; their numbers follow the released evaluation scripts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from sa2depth.errors import ConfigError, DataError, ShapeError, nearest
from sa2depth.resources import conf_dir

# Fractions of height (top, bottom) and width (left, right), from Garg et al. (2016) and Eigen et al. (2014).
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
# Eigen's crop of NYU v2 in pixels; it means something on a 480x640 frame only.
_NYU_FRAME = (480, 640)
_NYU_BOX = (45, 471, 41, 601)
CROPS = ("none", "nyu_eigen", *_FRACTIONS)


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol. Frozen: a score belongs to exactly one.

    Attributes:
        name: Unique name, written into every result.
        version: Raised whenever a change of the file changes a score.
        min_depth: Lower limit in metres: ground truth at or below it is not scored, predictions are raised to
            it.
        max_depth: Upper limit in metres: ground truth at or above it is not scored, predictions are lowered
            to it.
        crop: ``none``, ``nyu_eigen`` (rows 45-470, columns 41-600 of 480x640), ``garg`` or ``kitti_eigen``
            (fractions of the frame).
        clip_both_at: Metres at which prediction *and* ground truth are clipped before scoring (SUN RGB-D: 8),
            or None. Pixels that saturate in both count as perfect.
        expected_images: Number of images of the full test split, or None where there is none;
            ``check_images`` fails on any other count.
        flip: Whether the prediction is averaged with the one on the mirrored image (``flip_average``); read
            by the code that runs the model.
        description: One sentence for people, copied into the results.

    Raises:
        ConfigError: A value is out of its range.
    """

    name: str
    version: int
    min_depth: float
    max_depth: float
    crop: str = "none"
    clip_both_at: float | None = None
    expected_images: int | None = None
    flip: bool = False
    description: str = ""

    def __post_init__(self) -> None:
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if not kind.accepts(value):
                raise ConfigError(f"protocol '{self.name}': {key} must be {kind.words}, not {value!r}")
        if not self.min_depth < self.max_depth:
            raise ConfigError(
                f"protocol '{self.name}': min_depth {self.min_depth} must be below max_depth {self.max_depth}"
            )
        if self.clip_both_at is not None and self.clip_both_at <= self.min_depth:
            raise ConfigError(
                f"protocol '{self.name}': clip_both_at must be above min_depth {self.min_depth}"
            )
        if self.crop not in CROPS:
            raise ConfigError(
                f"protocol '{self.name}': unknown crop '{self.crop}'; {nearest(self.crop, CROPS)}"
            )

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What is scored: ``(top, bottom, left, right)`` in pixels, bottom and right excluded.

        Raises:
            ShapeError: The crop is defined for another frame size than ``height`` x ``width``.
        """
        if self.crop == "none":
            return 0, height, 0, width
        if self.crop == "nyu_eigen":
            # OFFICIAL: the released scripts put this pixel box onto frames of any size.
            if (height, width) != _NYU_FRAME:
                raise ShapeError(
                    f"protocol '{self.name}': the crop nyu_eigen is defined on 480x640 frames, not on "
                    f"{height}x{width}: bring both to that frame or use another protocol"
                )
            return _NYU_BOX
        top, bottom, left, right = _FRACTIONS[self.crop]
        return int(top * height), int(bottom * height), int(left * width), int(right * width)

    def check_images(self, found: int) -> None:
        """Refuse to call a partial evaluation by this protocol's name.

        Raises:
            DataError: The full split has another number of images.
        """
        if self.expected_images is not None and found != self.expected_images:
            raise DataError(
                f"protocol '{self.name}' has {self.expected_images} images, but {found} were evaluated: "
                "check the data folder and the split, or set protocol.expected_images=null for a partial run"
            )


@dataclass(frozen=True)
class _Kind:
    """What a field accepts, and how to say it."""

    words: str
    number: bool = False
    whole: bool = False
    optional: bool = False
    types: tuple[type, ...] = (str,)
    above: float = -math.inf

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.optional
        if not self.number:
            return isinstance(value, self.types)
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return math.isfinite(value) and value > self.above


_KINDS = {
    "name": _Kind("a text"),
    "version": _Kind("a whole number from 1", number=True, whole=True, above=0),
    # 0 would make log(min_depth) infinite for every prediction that is clamped to it
    "min_depth": _Kind("a positive number of metres", number=True, above=0),
    "max_depth": _Kind("a positive number of metres", number=True, above=0),
    "crop": _Kind("a text"),
    "clip_both_at": _Kind("a positive number of metres or null", number=True, above=0, optional=True),
    "expected_images": _Kind(
        "a positive whole number or null", number=True, whole=True, above=0, optional=True
    ),
    "flip": _Kind("true or false", types=(bool,)),
    "description": _Kind("a text"),
}


ProtocolLike = str | Path | Mapping[str, Any] | DictConfig | Protocol


def load_protocol(source: ProtocolLike) -> Protocol:
    """Protocol by name, from a YAML file, or from the node Hydra composed out of ``conf/protocol``.

    Args:
        source: Name of a file in ``conf/protocol``, path of a ``.yaml`` file, a mapping of the fields, or a
            ``Protocol``, which is returned as it is. A mapping that bears the name of a shipped protocol but
            differs from it (``protocol.max_depth=5`` on the command line) gets a name that says so.

    Raises:
        ConfigError: Unknown name or key (with the nearest known ones), a missing key or a bad value.
    """
    if isinstance(source, Protocol):
        return source
    if isinstance(source, (Mapping, DictConfig)):
        return _honest(_from_mapping(source, "the protocol's configuration"))
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = conf_dir() / "protocol" / f"{source}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (conf_dir() / "protocol").glob("*.yaml"))
        raise ConfigError(f"there is no protocol '{source}'; {nearest(Path(source).stem, known)}")
    try:
        node = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of protocol fields")
    return _from_mapping(node, str(path))


def _from_mapping(node: Mapping[str, Any] | DictConfig, where: str) -> Protocol:
    try:
        values: Any = node
        if isinstance(node, DictConfig):
            values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error}") from error
    known = [field.name for field in fields(Protocol)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'; {nearest(str(key), known)}")
    missing = [key for key in ("name", "version", "min_depth", "max_depth") if key not in values]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return Protocol(**{str(key): value for key, value in values.items()})


def _honest(protocol: Protocol) -> Protocol:
    """The protocol, renamed if it was changed under a shipped name: its scores are not that protocol's."""
    if not (conf_dir() / "protocol" / f"{protocol.name}.yaml").is_file():
        return protocol
    shipped = load_protocol(protocol.name)
    changed = [key for key in _KINDS if getattr(protocol, key) != getattr(shipped, key)]
    return replace(protocol, name=f"{protocol.name} (changed: {', '.join(changed)})") if changed else protocol
