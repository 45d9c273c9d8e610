"""Measure this machine: launch plans of a GPU, engines of a CPU."""
