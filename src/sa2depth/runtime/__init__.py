"""The network in other forms: compiled, replayed from CUDA graphs, recomputed in the backward pass, for inference."""
