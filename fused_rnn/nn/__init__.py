"""Modules with torch.nn's face: layers, cells of one step, and the conversion of models."""

from . import timed  # noqa: F401  which tells ``engines.cpu_race`` how a layer is timed
