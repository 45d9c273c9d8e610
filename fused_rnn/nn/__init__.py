"""Modules shaped like torch.nn's: layers, cells of one step, and the conversion of models."""

from . import timed  # noqa: F401  gives ``engines.cpu_race`` its timer
