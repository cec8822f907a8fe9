"""Training losses, one a file. Each is called as ``loss(pred, target, valid) -> scalar``."""

from sa2depth.losses.silog import SILog

__all__ = ["SILog"]
