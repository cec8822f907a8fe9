"""Time the CPU's part of an evaluation, which is baseline and pictures, as done now and as done before.

Version 0.1 decoded every photograph to read its depth, shared the small operations of one depth map between all cores,
and built a figure for every picture. That code is kept here so that one run compares both.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from sa2depth.data.frame import Frame
from sa2depth.data.source import FileSource
from sa2depth.masks import valid_mask
from sa2depth.metrics import MedianDepthMap, Protocol, aggregate, evaluate_image
from sa2depth.report import DepthGrids, depth_grid
from sa2depth.run.baseline import fit_and_score

TRAIN_MAPS, TEST_IMAGES, PICTURES = 60, 50, 18


class Timed(NamedTuple):
    """Seconds that one way to do a task takes."""

    subject: str
    way: str
    seconds: float


def evaluation_times(size: tuple[int, int]) -> Iterator[Timed]:
    """Time baseline and pictures on generated files, first the earlier way with 1, 4 and all threads.

    Args:
        size: height and width of the images.
    """
    with TemporaryDirectory(prefix="sa2depth-bench-") as folder:
        frames = [_write(Path(folder), index, size) for index in range(TRAIN_MAPS + TEST_IMAGES)]
        train, test = FileSource(frames[:TRAIN_MAPS]), FileSource(frames[TRAIN_MAPS:])
        protocol = Protocol("bench", 1, 0.001, 10.0)
        subject = f"baseline of {TRAIN_MAPS} maps and {TEST_IMAGES} images"
        most = torch.get_num_threads()
        for threads in sorted({1, min(4, most), most}):
            with _threads(threads):
                seconds = _seconds(lambda: _as_before(train, test, protocol))
            yield Timed(subject, f"as before, {threads} threads", seconds)
        yield Timed(subject, "now", _seconds(lambda: fit_and_score(train, test, protocol)))
        sample = test[0]
        assert sample.depth is not None
        image, depth = sample.image, sample.depth
        picture = Path(folder) / "picture.png"

        def one_by_one() -> None:
            for _ in range(PICTURES):
                depth_grid([image], [depth], [depth], 10.0, picture)

        def together() -> None:
            grids = DepthGrids(10.0)
            for _ in range(PICTURES):
                grids.draw([image], [depth], [depth], picture)

        yield Timed(f"{PICTURES} pictures", "a figure for each", _seconds(one_by_one))
        yield Timed(f"{PICTURES} pictures", "now", _seconds(together))


def _as_before(train: FileSource, test: FileSource, protocol: Protocol) -> None:
    def masked(index: int) -> object:
        depth = torch.from_numpy(train[index].depth)
        return torch.where(valid_mask(depth, protocol.min_depth, protocol.max_depth), depth, 0.0).numpy()

    predictor = MedianDepthMap().fit(masked(index) for index in range(len(train)))
    rows = []
    for index in range(len(test)):
        truth = test[index].depth
        assert truth is not None
        rows.append(evaluate_image(predictor.predict(), truth, protocol))
    aggregate(rows, protocol)


def _write(folder: Path, index: int, size: tuple[int, int]) -> Frame:
    rng = np.random.default_rng(index)
    small = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    image, depth = folder / f"{index}.jpg", folder / f"{index}.png"
    Image.fromarray(cv2.resize(small, size[::-1])).save(image, quality=95)
    metres = cv2.resize(rng.uniform(1, 9, (8, 8)), size[::-1])
    cv2.imwrite(str(depth), (1000 * metres).astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return Frame(image, depth, None, str(index))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
