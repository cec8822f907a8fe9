"""The machinery below the operators' back ends: the CPU library, CUDA kernels through NVRTC, Triton."""
