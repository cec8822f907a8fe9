"""Encoders take an image and return four maps at 1/4, 1/8, 1/16 and 1/32."""

from sa2depth.models.encoders.internimage import InternImage
from sa2depth.models.encoders.timm import TimmEncoder

__all__ = ["InternImage", "TimmEncoder"]
