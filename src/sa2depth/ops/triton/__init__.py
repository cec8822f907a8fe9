"""Operators written in Triton, for GPUs that the CUDA kernels cannot be had for: older ones, other makers, no NVRTC."""
