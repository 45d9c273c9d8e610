"""Checks of how the gates, states, params and stages of a cell fit together."""

from __future__ import annotations

import re
from typing import Any

import torch

from .parts import Stage

# Names of a module's own parameters and attributes, which a cell's params may not have.
_OF_MODULES = re.compile("(weight|bias)_(ih|hh|hr)[0-9]*")
_ATTRIBUTES = {"backend", "bias", "cell", "hidden_size", "input_size", "proj_size", "recompute"}
_ATTRIBUTES |= {"nonlinearity", "num_chunks", "num_heads", "learn_h0"}
_ATTRIBUTES |= {"zoneout", "state_dropout", "weight_drop", "recurrent_dropout", "cell_clip"}


def check_names(cell: Any) -> None:
    """Check that the names of a cell, and of its stages, fit together.

    Raises:
        ValueError: they do not; says which.
    """
    where = f"cell {cell.name!r}"
    if not cell.gates or not cell.states:
        raise ValueError(f"{where}: expected at least one gate and one state")
    for s, stage in enumerate(cell.stages):
        if not stage.gates or (not callable(stage.source) and not stage.source):
            raise ValueError(f"{where}, stage {s}: expected gates and a source, got {stage}")
    for name in cell.params:
        if _OF_MODULES.fullmatch(name) or name in _ATTRIBUTES or hasattr(torch.nn.Module, name):
            raise ValueError(
                f"{where}, params: {name!r} is the name of an attribute of the modules; "
                "expected another one"
            )
    for kind in ("gates", "states", "params", "streams", "x_gates"):
        names = getattr(cell, kind)
        if kind == "streams":
            names += tuple(stream.name for stream in cell.drawn)
        if len(set(names)) != len(names):
            raise ValueError(f"{where}, {kind}: expected distinct names, got {names}")
    of_stages = [gate for stage in cell.stages for gate in stage.gates]
    unknown = [gate for gate in of_stages if gate not in cell.gates]
    if unknown:
        raise ValueError(f"{where}, stages: expected some of {cell.gates}, got {unknown}")
    end = 0
    for s, stage in enumerate(cell.stages):
        begin, last = span(cell, stage)
        if begin < end or stage.gates != cell.gates[begin:last]:
            raise ValueError(
                f"{where}, stage {s}: expected gates that follow each other in {cell.gates}, "
                f"after those of the stages before, got {stage.gates}"
            )
        end = last
    for kind, names, known in (
        ("x_gates", cell.x_gates, cell.gates),
        ("raw_gates", cell.raw_gates, cell.x_gates),
        *(
            ("source", stage.source, cell.states)
            for stage in cell.stages
            if not callable(stage.source)
        ),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{where}, {kind}: expected some of {known}, got {unknown}")
    silent = [g for g in cell.gates if g not in cell.x_gates and g not in of_stages]
    if silent:
        raise ValueError(f"{where}, gates: neither an input nor a recurrent part: {silent}")


def check_fixed(cell: Any) -> None:
    """Check the stages with fixed matrices.

    Raises:
        ValueError: other numbers of gates and vectors, or a gate with an input part.
    """
    for s, (stage, size) in enumerate(zip(cell.stages, cell.source_sizes, strict=True)):
        if not stage.fixed:
            continue
        where = f"cell {cell.name!r}, stage {s}, weight {stage.fixed!r}"
        if len(stage.gates) != size:
            raise ValueError(
                f"{where}: expected one gate for each of the {size} vectors of the source, got "
                f"{stage.gates}"
            )
        given = [gate for gate in stage.gates if gate in cell.x_gates]
        if given:
            raise ValueError(
                f"{where}: expected gates without an input part, got {given}, which are in "
                "x_gates; let x_gates name the others"
            )


def span(cell: Any, stage: Stage) -> tuple[int, int]:
    """(begin, end): the gates of a stage are ``cell.gates[begin:end]``."""
    begin = cell.gates.index(stage.gates[0])
    return begin, begin + len(stage.gates)
