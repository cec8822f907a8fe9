"""Speed and memory, measured: every figure beside its comparison, in one run."""
