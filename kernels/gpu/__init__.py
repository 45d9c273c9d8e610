"""The Triton kernels: one forward and one backward for every cell."""
