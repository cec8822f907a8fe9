"""Weights that a layer computes from its parameters: at each call in training, once for inference."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class MergesWeights(nn.Module, ABC):
    """A layer that merges parameters into the weights of fewer operations.

    Subclasses implement ``_merge``. The merged weights are not part of the state dict.
    """

    @abstractmethod
    def _merge(self) -> tuple[Tensor, ...]:
        """The weights, from the parameters as they are now."""

    def merged(self) -> tuple[Tensor, ...]:
        """The merged weights; gradients flow to the parameters unless `fix_merged` was called."""
        fixed = tuple(
            buffer for name, buffer in self.named_buffers(recurse=False) if name.startswith("merged_")
        )
        return fixed or self._merge()

    @torch.no_grad()
    def fix_merged(self, dtype: torch.dtype | None = None) -> None:
        """Merge the present parameters once; from now on the layer serves inference only.

        Args:
            dtype: dtype of the result; by default that of the parameters.
        """
        for index, tensor in enumerate(self._merge()):
            self.register_buffer(f"merged_{index}", tensor.to(dtype or tensor.dtype), persistent=False)
