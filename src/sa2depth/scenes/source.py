"""The embedded default data set: endless rooms and streets with exact depth, ray-cast from a seed.

It downloads and reads nothing: number ``n`` of a seed is always the same scene.
"""

from typing import Annotated, Literal, get_args

import numpy as np
from annotated_types import Ge

from sa2depth.data.sample import RawSample
from sa2depth.errors import ConfigError
from sa2depth.scenes.rooms import build_room
from sa2depth.scenes.scene import Scene
from sa2depth.scenes.shading import develop, radiance
from sa2depth.scenes.streets import build_street
from sa2depth.values import checked

Kind = Literal["mixed", "rooms", "streets"]
_ROOMS_SHARE = 0.65  # of "mixed"


class SyntheticScenes:
    """A source of ray-cast scenes.

    The camera is a pinhole with square pixels and 56 to 66 degrees of horizontal field of view, different in
    each scene; the geometry does not depend on the resolution, so that the same index at twice the size is
    the same scene. Depth is exact at pixel centres, and 0 (not measured) for sky and from ``max_depth`` on.

    Args:
        count: number of scenes.
        seed: family of scenes, 0 or more.
        height: H, px.
        width: W, px.
        kind: "rooms", "streets", or "mixed" (two thirds rooms).
        max_depth: range in metres; streets are built to fill it.
        offset: number of the first scene, so that training and test sets of one seed need not overlap.
        cache: keep rendered samples in memory: 7 bytes per pixel, 86 kB per scene at 96 x 128.

    Raises:
        ConfigError: an argument is out of range.
    """

    @checked
    def __init__(
        self,
        count: Annotated[int, Ge(1)],
        seed: Annotated[int, Ge(0)] = 0,
        height: Annotated[int, Ge(8)] = 96,
        width: Annotated[int, Ge(8)] = 128,
        kind: Kind = "mixed",
        max_depth: float = 10.0,
        offset: Annotated[int, Ge(0)] = 0,
        cache: bool = True,
    ) -> None:
        if kind not in get_args(Kind):
            raise ConfigError(
                f"synthetic scenes: kind is {kind!r}; choose one of {', '.join(get_args(Kind))}"
            )
        # a shorter street has no space for its houses
        nearest_end = 1.0 if kind == "rooms" else 5.0
        if not nearest_end <= max_depth <= 1000.0:
            raise ConfigError(
                f"synthetic scenes ({kind}): max_depth is {max_depth!r}; give metres between {nearest_end:g} and 1000"
            )
        self.count, self.seed, self.offset = count, seed, offset
        self.height, self.width = height, width
        self.kind, self.max_depth = kind, float(max_depth)
        self._cache: dict[int, RawSample] | None = {} if cache else None

    @property
    def keeps_samples(self) -> bool:
        """True if a scene is rendered only once."""
        return self._cache is not None

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def __getitem__(self, index: int) -> RawSample:
        """Scene ``offset + index``.

        Raises:
            IndexError: ``index`` is not in [0, count).
        """
        if not 0 <= index < self.count:
            raise IndexError(f"there is no scene {index}: give a number from 0 to {self.count - 1}")
        if self._cache is not None and index in self._cache:
            sample = self._cache[index]
        else:
            sample = self._render(self.offset + int(index))
            if self._cache is not None:
                self._cache[index] = sample
        depth = None if sample.depth is None else sample.depth.copy()
        return RawSample(sample.image.copy(), depth, sample.intrinsics.copy(), sample.id)

    def describe(self) -> str:
        """One line for the printed plan."""
        last = self.offset + self.count - 1
        return (
            f"{self.count:,} synthetic scenes ({self.kind}, seed {self.seed}, numbers {self.offset}-{last}), "
            f"{self.height}x{self.width}, up to {self.max_depth:g} m"
        )

    def scene(self, number: int) -> Scene:
        """The geometry of scene ``number`` of this seed, whatever the resolution."""
        return self._build(number)[0]

    def _build(self, number: int) -> tuple[Scene, bool, np.random.Generator]:
        """The scene, True for a room, and the random generator of its sensor."""
        streams = np.random.SeedSequence([self.seed, number]).spawn(2)
        rng, sensor = (np.random.Generator(np.random.PCG64(s)) for s in streams)
        room = bool(rng.random() < _ROOMS_SHARE)
        if self.kind != "mixed":
            room = self.kind == "rooms"
        return (build_room(rng) if room else build_street(rng, self.max_depth)), room, sensor

    def _render(self, number: int) -> RawSample:
        scene, room, sensor = self._build(number)
        image, depth = radiance(scene, self.height, self.width)
        measured = np.where(depth < self.max_depth, depth, np.float32(0))
        name = f"synthetic-{'room' if room else 'street'}-{self.seed}-{number:06d}"
        return RawSample(develop(image, sensor), measured, scene.lens.matrix(self.height, self.width), name)
