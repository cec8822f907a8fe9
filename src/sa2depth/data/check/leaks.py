"""Leaks: images and places that two splits of a data set must not share.

The same photograph is found by its id, by its file and by the bytes of its file, so that a copy under another name is
found too; the same place is found by the name that the data set gives it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from sa2depth.data.check.frames import Problem
from sa2depth.data.frame import Frame

PAIRS: tuple[tuple[str, str, str], ...] = (
    ("train", "test", "the result would be measured on training images"),
    ("train", "val", "models would be selected on images they were trained on"),
)
"""Splits that must share nothing, and why."""

_EXAMPLES = 3


def find_leaks(
    splits: Mapping[str, Sequence[Frame]], digests: Mapping[str, bytes] | None = None
) -> list[Problem]:
    """Everything that ``train`` shares with ``val`` or ``test``.

    Args:
        splits: the frames of each split by its name.
        digests: hash of each image file by its path; images without one are compared by id and path only.

    Returns:
        One problem for each image and each place in two splits.
    """
    return [
        problem
        for one, other, why in PAIRS
        if one in splits and other in splits
        for problem in _between(one, other, why, splits, digests or {})
    ]


def twins(frames: Iterable[Frame], digests: Mapping[str, bytes]) -> list[tuple[Frame, Frame]]:
    """Pairs of different files of one split with the same bytes: the first frame and each later one."""
    first: dict[bytes, Frame] = {}
    found = []
    for frame in frames:
        digest = digests.get(str(frame.image))
        if digest is None:
            continue
        earlier = first.setdefault(digest, frame)
        if earlier.image != frame.image:
            found.append((earlier, frame))
    return found


def shared_images(one: Sequence[Frame], other: Sequence[Frame]) -> int:
    """Number of images of ``other`` that are, by id or file, also in ``one``."""
    ids, files = {frame.id for frame in one}, {frame.image for frame in one}
    return sum(frame.id in ids or frame.image in files for frame in other)


def _between(
    one: str, other: str, why: str, splits: Mapping[str, Sequence[Frame]], digests: Mapping[str, bytes]
) -> Iterable[Problem]:
    by_id = {frame.id: frame for frame in splits[one]}
    by_file = {frame.image: frame for frame in splits[one]}
    by_content = {digests[str(f.image)]: f for f in splits[one] if str(f.image) in digests}
    for frame in splits[other]:
        digest = digests.get(str(frame.image))
        twin = by_id.get(frame.id) or by_file.get(frame.image)
        how = "the same image"
        if twin is None and digest is not None:
            twin, how = by_content.get(digest), "a byte-for-byte copy"
        if twin is not None:
            text = f"{how} is in {one} ('{twin.id}') and in {other} ('{frame.id}'): {why}"
            yield Problem("leaked_image", frame.id, str(frame.image), text)
    places: dict[str, list[Frame]] = defaultdict(list)
    for frame in splits[one]:
        places[frame.place].append(frame)
    if len(places.keys() | {frame.place for frame in splits[other]}) == 1:
        return  # all in one place, such as the folder of a user's two lists: that says nothing
    in_other: dict[str, list[Frame]] = defaultdict(list)
    for frame in splits[other]:
        if frame.place and frame.place in places:
            in_other[frame.place].append(frame)
    for place, frames in sorted(in_other.items()):
        text = (
            f"place '{place}' has {len(places[place]):,} images in {one} ({_names(places[place])}) and "
            f"{len(frames):,} in {other} ({_names(frames)}): {why}"
        )
        yield Problem("leaked_place", place, str(frames[0].image.parent), text)


def _names(frames: Sequence[Frame]) -> str:
    names = ", ".join(frame.id for frame in islice(frames, _EXAMPLES))
    return names + (", ..." if len(frames) > _EXAMPLES else "")
