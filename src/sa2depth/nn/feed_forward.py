"""Feed-forward layer gated by grouped convolutions (paper section III-C; ``GGFN`` of the released code)."""

import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError
from sa2depth.nn.folding import fold_into
from sa2depth.nn.layout import in_layout
from sa2depth.nn.merged import MergesWeights
from sa2depth.nn.pointwise import PointwiseConv
from sa2depth.ops import gated_conv


class GatedFeedForward(MergesWeights):
    """Expand, gate by ``tanh`` of three 3x3 convolutions with 1, 2 and 4 channels a group, project back.

    Args:
        channels: ``C``.
        expansion: hidden channels per input channel.

    Raises:
        ConfigError: if the hidden width is not a multiple of 4.
    """

    keep_float32 = True  # ops.gated_conv reads the merged kernel in float32
    own_slot: Tensor
    pair_slot: Tensor

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        if hidden % 4:
            raise ConfigError(
                f"the feed-forward's hidden width {hidden} ({channels} channels, expansion {expansion}) must be a "
                "multiple of 4: choose another expansion or other channels"
            )
        self.expand = PointwiseConv(channels, hidden)
        self.gate_by_1 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.gate_by_2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // 2)
        self.gate_by_4 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // 4)
        self.project = PointwiseConv(hidden, channels)
        # Masks of a channel and of its pair among the 4 inputs of its group.
        place, slot = torch.arange(hidden)[:, None] % 4, torch.arange(4)
        self.register_buffer("own_slot", (place == slot).float()[:, :, None, None], persistent=False)
        self.register_buffer(
            "pair_slot", (place // 2 == slot // 2).float()[:, :, None, None], persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        kernel, bias = self.merged()
        return self.project(gated_conv(self.expand(in_layout(x)), kernel, bias))

    def take_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Take ``x`` in place of ``scale * x + shift``; see `sa2depth.nn.traits`."""
        return fold_into((self.expand,), scale, shift)

    def _merge(self) -> tuple[Tensor, ...]:
        """Kernel and bias of one convolution, with 4 channels a group, that equals the sum of the three."""
        by_1, by_2, by_4 = self.gate_by_1, self.gate_by_2, self.gate_by_4
        kernel = by_4.weight + self.pair_slot * by_2.weight.repeat(1, 2, 1, 1) + self.own_slot * by_1.weight
        assert by_1.bias is not None
        assert by_2.bias is not None
        assert by_4.bias is not None
        return kernel, by_1.bias + by_2.bias + by_4.bias
