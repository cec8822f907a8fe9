"""Lists of frames: published tables, and division by place."""
