"""What the operators' back ends run on: the CPU library, CUDA kernels through NVRTC, Triton."""
