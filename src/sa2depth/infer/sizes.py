"""Any size: the policies of `sa2depth.metrics.sizes`, which evaluation and inference share, under their old name."""

from sa2depth.metrics.sizes import pad_to_multiple, resize_image, resize_map, working_size

__all__ = ["pad_to_multiple", "resize_image", "resize_map", "working_size"]
