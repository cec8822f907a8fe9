"""Depth bins: from widths to centres, and from scores to metres (``MLBP`` and ``DispHead`` as released)."""

import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.ops.precision import at_least_float32, no_autocast


def bin_centers_from_logits(logits: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Centres of adjacent bins that fill the depth range.

    Args:
        logits: ``(B, K)``, unnormalised log widths.
        min_depth: metres, left edge of the first bin.
        max_depth: metres, right edge of the last bin.

    Returns:
        ``(B, K)`` metres, ascending, at least float32.
    """
    with no_autocast(logits):
        widths = (max_depth - min_depth) * at_least_float32(logits).softmax(dim=1)
        edges = F.pad(widths, (1, 0), value=min_depth).cumsum(dim=1)
        return 0.5 * (edges[:, :-1] + edges[:, 1:])


def expected_depth(logits: Tensor, bin_centers: Tensor) -> Tensor:
    """Expectation of the bin centres under the softmax of the scores.

    Args:
        logits: ``(B, K, H, W)``, scores of the bins at each pixel.
        bin_centers: ``(B, K)`` metres.

    Returns:
        ``(B, 1, H, W)`` metres, at least float32.
    """
    with no_autocast(logits):
        probabilities = at_least_float32(logits).softmax(dim=1)
        return (probabilities * bin_centers[:, :, None, None]).sum(dim=1, keepdim=True)


class DepthFromBins(nn.Module):
    """Turn bins into a depth map at the image's size; a module without weights, so that it can be compiled."""

    compile_unit = True

    def forward(self, logits: Tensor, bin_centers: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Expected depth at the image's size.

        Args:
            logits: ``(B, K, H / 4, W / 4)``, or the size of the encoder's finest map if that differs.
            bin_centers: ``(B, K)`` metres.
            size: ``(H, W)``; four times that of ``logits`` if None.

        Returns:
            ``(B, 1, H, W)`` metres, at least float32.
        """
        height, width = logits.shape[2:]
        with no_autocast(logits):
            return F.interpolate(
                expected_depth(logits, bin_centers), size or (4 * height, 4 * width), mode="bilinear"
            )
