"""Whether the kernels are right on this GPU: a small problem before their first use."""
