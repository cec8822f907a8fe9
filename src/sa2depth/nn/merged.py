"""Weights that a layer computes from its parameters: again at each call in training, once for inference."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class MergesWeights(nn.Module, ABC):
    """A layer that merges parameters into the weights of fewer operations.

    Subclasses give ``_merge``. The merged weights are no part of the state dict.
    """

    @abstractmethod
    def _merge(self) -> tuple[Tensor, ...]:
        """The weights, from the parameters as they are now."""

    def merged(self) -> tuple[Tensor, ...]:
        """The merged weights, with a gradient to the parameters unless they were fixed."""
        fixed = tuple(
            buffer for name, buffer in self.named_buffers(recurse=False) if name.startswith("merged_")
        )
        return fixed or self._merge()

    @torch.no_grad()
    def fix_merged(self, dtype: torch.dtype | None = None) -> None:
        """Merge once and for all: the layer is for inference from now on, with the parameters as they are.

        Args:
            dtype: to round the result to; by default that of the parameters.
        """
        for index, tensor in enumerate(self._merge()):
            self.register_buffer(f"merged_{index}", tensor.to(dtype or tensor.dtype), persistent=False)
