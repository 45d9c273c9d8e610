"""The API page: under each name of its lists, the signature and the docstring."""

from __future__ import annotations

import inspect
import re

import fused_rnn

# What users call of the modules among the public names.
OF_MODULES = {
    "cells": (
        *("get", "names", "draw_key", "same"),
        *("layer_norm_stages", "layer_norm", "rms_norm_stage", "rms_norm"),
    ),
    "importers": ("from_keras", "from_haste", "from_madmom", "from_onnx", "from_tirex"),
    "torch_classes": (),
}
METHODS = {
    "Recurrent": "forward, reset_parameters",
    "RecurrentCell": "forward",
    "Cell": "check, run_step, run_source, triton_source",
}


def with_docstrings(text: str) -> str:
    """The page with a directive below each line that lists names."""
    return re.sub(r"^- ((?:`\w+`(?:, )?)+): .*$", _entry, text, flags=re.M)


def _entry(line: re.Match) -> str:
    names = re.findall(r"`(\w+)`", line[1])
    directives = "\n".join(directive for name in names for directive in _directives(name))
    return f"{line[0]}\n\n```{{eval-rst}}\n{directives}\n```\n"


def _directives(name: str):
    value = getattr(fused_rnn, name)
    if inspect.ismodule(value):
        yield f".. automodule:: {value.__name__}\n   :no-members:\n   :no-index:\n"
        for function in OF_MODULES[name]:
            yield f".. autofunction:: fused_rnn.{name}.{function}\n"
    elif inspect.isclass(value):
        methods = f"   :members: {METHODS[name]}\n" if name in METHODS else ""
        yield f".. autoclass:: fused_rnn.{name}\n{methods}"
    else:
        yield f".. autofunction:: fused_rnn.{name}\n"


def as_rst(app, what, name, value, options, lines):
    """Docstrings are written to be read as they are: mark what reST would take for markup."""
    text = "\n".join(lines)
    # A section of another name than napoleon knows is shown as it is written.
    text = re.sub(r"^(\w+ \([^)]*\)):\n(?=    )", r"\1::\n\n", text, flags=re.M)
    text = re.sub(r"^Returns:\n((?:    .*\n)+)", _listed, text, flags=re.M)
    # An ending after a literal, and names such as h_, which are no links.
    parts = re.split(r"(``[^`]+``)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", parts[i])
        if i and parts[i][:1].isalpha():
            parts[i] = f"\\ {parts[i]}"
    lines[:] = "".join(parts).split("\n")


def _listed(section: re.Match) -> str:
    """Several named results as a list; napoleon expects one."""
    if len(re.findall(r"^    \w+: ", section[1], re.M)) < 2:
        return section[0]
    out = [
        f"- {line.strip()}" if re.match(r"    \w+: ", line) else f"  {line.strip()}"
        for line in section[1].splitlines()
    ]
    return "\n".join(["**Returns:**", "", *out, ""])
