"""Score predictions in files, without network and trainer, in one process that reads with several threads."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sa2depth.data.sample import RawSample, Source
from sa2depth.errors import DataError
from sa2depth.metrics import DepthMetrics, Evaluation, Examples, Protocol, view_of
from sa2depth.metrics.examples import offer_all
from sa2depth.run.parallel import ahead, workers
from sa2depth.run.predictions import Prediction, PredictionReader, find_files, listing
from sa2depth.stages import stage
from sa2depth.threads import few_threads


class FileScores(NamedTuple):
    """An evaluation of files, candidates for its pictures, and the number of resized predictions."""

    evaluation: Evaluation
    examples: Examples
    resized: int


class PredictionFiles:
    """The predictions of a split, with exactly one file for each image.

    Args:
        folder: folder of the predictions.
        source: the images with their truth.
        reader: reads the files.
        protocol: rules of the scores.

    Raises:
        DataError: see `find_files`.
        ConfigError: see `PredictionReader.check`.
    """

    def __init__(self, folder: Path, source: Source, reader: PredictionReader, protocol: Protocol) -> None:
        self.folder, self.source, self.reader, self.protocol = folder, source, reader, protocol
        self.files = list(find_files(folder, source_ids(source)).values())
        reader.check(self.files, protocol)

    def describe(self) -> str:
        """One line for the plan: the number of files of each kind, their scale, and files that belong to no image."""
        kinds = Counter(path.suffix for path in self.files)
        scale = f" ({self.reader.units_per_metre:g} per metre)" if self.reader.units_per_metre else ""
        parts = [
            f"{count:,} {kind}{scale if kind == '.png' else ''}" for kind, count in sorted(kinds.items())
        ]
        others = len(listing(self.folder)) - len(self.files)
        ignored = f", {others:,} other files belong to no image of the split" if others else ""
        return f"{' and '.join(parts)} in {self.folder}{ignored}"

    def score(self, threads: int | None = None) -> FileScores:
        """Score all of them, with a progress bar on a terminal.

        Args:
            threads: number of threads that read; None: one per usable core, at most 8.

        Raises:
            DataError: a file is broken or of the wrong size; the message names it.
        """
        total, resized = len(self.source), 0
        metrics, examples = DepthMetrics(self.protocol), Examples(total=total)
        with stage("scoring", total) as progress, few_threads(1):
            for index, (sample, prediction) in enumerate(
                ahead(self._read, range(total), threads or workers())
            ):
                view = view_of(_batch(sample, index), self.protocol)
                metrics.update(prediction.depth, view)
                offer_all(examples, metrics, view, prediction.depth)
                resized += prediction.resized
                progress.advance()
        return FileScores(metrics.evaluation(split_images=total, network=False), examples, resized)

    def _read(self, index: int) -> tuple[RawSample, Prediction]:
        sample = self.source[index]
        height, width = sample.image.shape[:2]
        truth = None if sample.depth is None else (sample.depth.shape[0], sample.depth.shape[1])
        return sample, self.reader(self.files[index], (height, width), self.protocol, truth)


def _batch(sample: RawSample, index: int) -> dict[str, Any]:
    if sample.depth is None:
        raise DataError(f"{sample.id}: no ground truth to score against. Choose a split that has it")
    image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255
    depth = torch.from_numpy(sample.depth)[None, None]
    return {"image": image, "depth": depth, "index": torch.tensor([index]), "id": [sample.id]}


def source_ids(source: Source) -> Sequence[str]:
    """Ids of all images of a source; images are opened only if the source does not know their ids."""
    ids: Sequence[str] | None = getattr(source, "ids", None)
    if ids is not None:
        return ids
    found = []
    with stage("reading the names of the images", len(source)) as progress:
        for index in range(len(source)):
            found.append(source[index].id)
            progress.advance()
    return found
