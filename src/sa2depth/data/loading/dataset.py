"""Turn the samples of a source into tensors and batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset, default_collate

from sa2depth.data.augment.photometric import to_float
from sa2depth.data.loading.samplers import Draw, stream
from sa2depth.data.sample import RawSample, Source, full_depth
from sa2depth.errors import DataError

Augment = Callable[[RawSample, np.random.Generator], RawSample]
Batch = dict[str, Any]


class DepthDataset(Dataset[Batch]):
    """Tensors of a source, augmented or not.

    An item is a dict with ``image (3, H, W) float32`` in [0, 1] RGB; ``depth (1, H, W) float32`` metres, 0 =
    not measured (absent if the source has none; smaller if the source's is smaller, unless ``full_depth``);
    ``intrinsics (3, 3) float32`` px; ``id`` str; ``index`` int.

    The randomness of an item depends on ``(seed, epoch, index)`` alone: not on the number of workers or
    processes, nor on what was drawn before.

    Args:
        source: the source of samples.
        augment: random change of a sample; None: as read.
        seed: seed of all random streams.
        full_depth: upsample depth that has fewer pixels than its image (`sa2depth.data.sample.full_depth`), as
            training and every augmentation need; None: only if there is an augmentation.
    """

    def __init__(
        self,
        source: Source,
        augment: Augment | None = None,
        seed: int = 0,
        full_depth: bool | None = None,
    ) -> None:
        self.source, self.augment, self.seed = source, augment, seed
        self.full_depth = augment is not None if full_depth is None else full_depth

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | Draw) -> Batch:
        """Item by number, or by number and epoch; a plain number means epoch 0."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        sample = self.source[index]
        if self.full_depth:
            sample = full_depth(sample)
        if self.augment is not None:
            sample = self.augment(sample, stream(self.seed, 1, epoch, index))
        return to_item(sample, index)


def to_item(sample: RawSample, index: int) -> Batch:
    """The tensors of one sample; see `DepthDataset`."""
    item: Batch = {
        "image": torch.from_numpy(np.ascontiguousarray(rearrange(to_float(sample.image), "h w c -> c h w"))),
        "intrinsics": torch.from_numpy(sample.intrinsics.astype(np.float32)),
        "id": sample.id,
        "index": index,
    }
    if sample.depth is not None:
        depth = np.ascontiguousarray(sample.depth, dtype=np.float32)
        item["depth"] = torch.from_numpy(rearrange(depth, "h w -> 1 h w"))
    return item


def collate(items: Sequence[Batch]) -> Batch:
    """Stack items: tensors get a leading ``B``, ids become a list of str, indices an int64 tensor ``(B,)``.

    Raises:
        DataError: the images or the depth maps differ in size, or only some have depth.
    """
    sizes = {tuple(item["image"].shape[-2:]): item["id"] for item in items}
    if len(sizes) > 1:
        found = ", ".join(f"{name} is {height}x{width}" for (height, width), name in sizes.items())
        raise DataError(
            f"images of different sizes cannot share a batch: {found}. "
            "For training, set augment.crop=[height,width]; for evaluation, data.eval_batch_size=1."
        )
    without = [item["id"] for item in items if "depth" not in item]
    if without and len(without) < len(items):
        raise DataError(
            f"some images of a batch have no depth ({', '.join(without)}): set data.eval_batch_size=1"
        )
    depths = {tuple(item["depth"].shape[-2:]): item["id"] for item in items if "depth" in item}
    if len(depths) > 1:
        found = ", ".join(f"that of {name} is {height}x{width}" for (height, width), name in depths.items())
        raise DataError(
            f"depth maps of different sizes cannot share a batch: {found}. Set data.eval_batch_size=1."
        )
    batch: Batch = default_collate(list(items))
    return batch
