"""The fused kernels: one generic forward and one generic backward, in Triton, for every cell."""
