"""A check of the kernels before their first use on a GPU: a small problem, under a deadline."""
