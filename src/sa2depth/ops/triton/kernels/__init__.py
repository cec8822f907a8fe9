"""The kernels. These modules import Triton, which is not everywhere: the operators import them when they run."""
