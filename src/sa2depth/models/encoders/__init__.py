"""Encoders: an image in, four maps at 1/4, 1/8, 1/16 and 1/32 out."""

from sa2depth.models.encoders.internimage import InternImage
from sa2depth.models.encoders.timm import TimmEncoder

__all__ = ["InternImage", "TimmEncoder"]
